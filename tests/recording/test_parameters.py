"""Parameters that change while they are watched, and gradients that change before the step.

The oracle reads the gradients of the parameters that the network has when the optimizer's
arithmetic begins, in float64.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import gradscope
from gradscope.recording import kernels
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.carried import THOROUGH
from gradscope.recording.meters import Meters
from gradscope.recording.parameters import ParameterReader

STEPS = 4


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _both_meters(request, monkeypatch):
    """Everything holds with the compiled kernels and with what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)


def network():
    """Three layers, the last one without a bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)
    )


def train(change, *, before_step=lambda model: None, watched=True, activations=True, by_hand=False):
    """Train, and change the network after the second step; what was recorded, and the oracle."""
    model = network()
    consumed: list[dict[str, float]] = []

    class Spied(torch.optim.SGD):
        def step(self, closure=None):
            note()
            return super().step(closure)

    def note():
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        consumed.append({n: float(p.grad.double().norm()) for n, p in named if p.grad is not None})

    optimizer = Spied(model.parameters(), lr=0.1)
    given = None if by_hand else optimizer
    scope = gradscope.watch(model, given, every=1, activations=activations) if watched else None
    torch.manual_seed(1)
    for i in range(STEPS):
        if i == 2:
            change(model)
            optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        before_step(model)
        optimizer.step()
        if by_hand and scope is not None:
            scope.step()
    found: list[dict[str, float]] = [{} for _ in range(STEPS)]
    if scope is not None:
        scope.close()
        for row in scope.trace().to_pandas().query("kind == 'weight'").itertuples():
            found[row.step][f"{row.module}.{row.parameter}"] = row.norm
    return found, consumed, list(model.parameters())


def load(model):
    """Exchange every parameter for another one."""
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def replace(model):
    """Put a layer of another size in the place of one, and add one."""
    model[4] = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))


def add(model):
    """A parameter that was not there."""
    model[2].gain = nn.Parameter(torch.ones(8))
    model[2].register_forward_hook(lambda module, args, output: output * module.gain)


def inject(model):
    """Adapters of low rank beside frozen layers."""
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0", "2"]), model)


def shorten(model):
    """A parameter less."""
    model[2].bias = None


CHANGES = {
    "load_state_dict": load,
    "module replaced": replace,
    "parameter added": add,
    "parameter removed": shorten,
    "pruned": lambda model: prune.l1_unstructured(model[4], "weight", 0.5),
    "pruned and made permanent": lambda model: prune.remove(
        prune.random_unstructured(model[0], "weight", 0.5), "weight"
    ),
    "weight norm": lambda model: parametrizations.weight_norm(model[2]),
    "low rank": inject,
    "frozen": lambda model: model[0].requires_grad_(False),
    "tied": lambda model: setattr(model[2], "weight", model[2].weight),
    "nothing": lambda model: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("options", [{}, {"activations": False}, {"by_hand": True}], ids=str)
def test_rows_are_those_of_the_parameters_that_the_network_has(change, options):
    """After a change rows come for new parameters, none for gone ones, each with its own norm."""
    found, consumed, weights = train(change, **options)
    assert found == [pytest.approx(norms, rel=1e-5) for norms in consumed]
    *_, bare = train(change, watched=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))


def test_what_was_recorded_before_a_change_stays():
    """Parameters that are gone keep their rows, and are not told to be unused."""
    found, *_ = train(replace)
    assert "4.weight" in found[1]
    assert "4.weight" not in found[2]
    assert "4.0.weight" in found[2]


def to_none(model):
    """Take the gradients of one layer away."""
    model[0].weight.grad = model[0].bias.grad = None


def through_numpy(model):
    """Change the gradients where torch does not see it."""
    for parameter in model.parameters():
        array = parameter.grad.numpy()
        np.multiply(array, 0.25, out=array)


def one_element(model):
    """Write one large element through numpy."""
    model[2].weight.grad.numpy()[3, 3] = 1e4


BEFORE_THE_STEP = {
    "set to None": to_none,
    "numpy": through_numpy,
    "numpy, one element": one_element,
    "another tensor": lambda model: setattr(
        model[2].weight, "grad", torch.ones_like(model[2].weight)
    ),
    "where there was none": lambda model: setattr(model[0].bias, "grad", torch.ones(8)),
}


@pytest.mark.parametrize("before_step", BEFORE_THE_STEP.values(), ids=BEFORE_THE_STEP)
@pytest.mark.parametrize("by_hand", [False, True])
def test_the_norm_is_that_of_the_gradient_at_the_step(before_step, by_hand):
    """Whatever was done to gradients after the backward pass; without one there is no row."""
    found, consumed, *_ = train(lambda model: None, before_step=before_step, by_hand=by_hand)
    assert found == [pytest.approx(norms, rel=1e-5) for norms in consumed]


def rows_by_data(gradient, rows):
    """As for tokens that are frozen."""
    gradient.data[rows] = 0.0


def rows_by_numpy(gradient, rows):
    """As a filter of somebody's own writes it."""
    gradient.numpy()[rows.numpy()] *= 0.5


@pytest.mark.parametrize("write", [rows_by_data, rows_by_numpy], ids=lambda write: write.__name__)
@pytest.mark.parametrize("start", [0, 5])
def test_gradients_written_far_from_their_largest_element(write, start):
    """Torch does not count it, and the largest element stays: told at once, or four steps later."""
    model = nn.Linear(50, 400, bias=False)
    optimizer, consumed = torch.optim.SGD(model.parameters(), lr=0.01), []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for i in range(12):
            optimizer.zero_grad()
            model(torch.randn(5, 50)).square().sum().backward()
            gradient = model.weight.grad
            if i >= start:
                others = torch.arange(400) // 100 != int(gradient.abs().argmax()) // 5000
                write(gradient, others)
            consumed.append(float(gradient.double().norm()))
            optimizer.step()
    found = scope.trace().to_pandas().query("kind == 'weight'").norm.tolist()
    told = range(12) if start == 0 else [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert [found[i] for i in told] == [pytest.approx(consumed[i], rel=1e-5) for i in told]


def test_gradients_that_are_taken_away_leave_no_row_but_of_their_own_optimizer():
    """With two optimizers, each step clears what it consumed and what the other one is to take."""
    model = network()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    with gradscope.watch(model, optimizers, every=1) as scope:
        for _ in range(3):
            for optimizer in optimizers:
                model.zero_grad()
                model(torch.ones(2, 6)).sum().backward()
                optimizer.step()
                model.zero_grad()
    names = scope.trace().to_pandas().query("kind == 'weight'").groupby(["module", "parameter"])
    assert names.size().to_dict() == {
        ("0", "weight"): 3,
        ("0", "bias"): 3,
        ("2", "weight"): 3,
        ("2", "bias"): 3,
        ("4", "weight"): 3,
    }


def test_each_pass_is_measured_though_its_gradients_bear_the_marks_of_the_last(monkeypatch):
    """A pass that writes the same tensors again, unseen by their version, is another pass.

    The largest block is as it was, so that nothing but the new pass tells that the rest is not.
    """
    parameter = nn.Parameter(torch.zeros(10_000))
    model = nn.ParameterList([parameter])
    buffer = StatisticsBuffer(1, 32, histograms=False)
    reader = ParameterReader(model, [], buffer, Meters(buffer))
    gradient = parameter.grad = torch.ones(10_000)
    gradient.data[0] = 2
    for rest in (1.0, 0.5):
        gradient.data[5000:] = rest
        reader.after_backward(None)
        norm = float(buffer.get(torch.device("cpu"), "norm", [1])[0])
        unclipped = float(buffer.get(torch.device("cpu"), "unclipped", [1])[0])
        assert norm == unclipped == pytest.approx(float(gradient.double().norm()))


def test_gradients_that_stay_are_measured_at_each_step():
    """Two steps with one backward pass: the second consumes the same tensors, unchanged.

    That no output was seen in it is no blind spot. Before it come those that are looked at twice.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for passes in (*[1] * (THOROUGH[0] + 1), 0, 1):
            if passes:
                optimizer.zero_grad()
                model(torch.randn(2, 6)).square().sum().backward()
            expected.append(float(model[4].weight.grad.norm()))
            optimizer.step()
    rows = scope.trace().to_pandas().query("module == '4'")
    assert rows[rows.kind == "weight"].norm.tolist() == pytest.approx(expected)
    seen = rows[rows.kind == "activation_grad"].step.tolist()
    assert seen == [*range(len(expected) - 2), len(expected) - 1]
    assert not scope.blind_spots


def test_a_parameter_that_fsdp_gathered_for_the_moment_is_no_other_parameter():
    """While the module shows another tensor without a gradient, the one that is stepped counts."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        model(torch.ones(2, 6)).sum().backward()
        kept = model[4].weight
        model[4]._parameters["weight"] = nn.Parameter(kept.detach().clone())
        optimizer.step()
        model[4]._parameters["weight"] = kept
    rows = scope.trace().to_pandas().query("kind == 'weight' and module == '4'")
    assert rows.norm.tolist() == [pytest.approx(float(kept.grad.norm()))]


def test_the_network_is_not_walked_by_name_unless_it_changed(monkeypatch):
    """Looking whether it changed costs no `named_parameters`, at recorded steps or others."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    walks = []
    original = nn.Module.named_parameters
    with gradscope.watch(model, optimizer, every=2):
        monkeypatch.setattr(
            nn.Module, "named_parameters", lambda *a, **k: walks.append(1) or original(*a, **k)
        )
        for i in range(6):
            if i == 1:
                walks.clear()  # those that read the structure of the network
            if i == 3:
                assert not walks
                load(model)
            optimizer.zero_grad()
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
        assert len(walks) == 1


def test_a_gradient_that_stays_is_measured_at_each_step():
    """Marks of the last step do not stand for numbers of this one."""
    parameter = nn.Parameter(torch.zeros(8))
    parameter.grad = torch.ones(8)
    model = nn.ParameterList([parameter])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.step()
    assert scope.trace().to_pandas().norm.tolist() == [pytest.approx(8**0.5)] * 3
