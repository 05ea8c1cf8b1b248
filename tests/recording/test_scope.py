"""The recorder against plain autograd, on awkward networks, and against its own promises."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.errors import GradscopeWarning
from gradscope.recording import kernels


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _both_meters(request, monkeypatch):
    """Everything holds with the compiled kernels and with what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)


def mlp(*widths: int) -> nn.Sequential:
    """A chain of linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def step(model, optimizer, inputs, *, clip=None):
    """One plain training step on the sum of squares of the output."""
    optimizer.zero_grad()
    output = model(inputs)
    loss = output.square().sum() if isinstance(output, torch.Tensor) else sum_of(output)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def sum_of(output):
    """Sum of squares of every tensor in an output, whatever its nesting."""
    from gradscope.nested import tensors_in

    return sum(t.square().sum() for t in tensors_in(output))


def table(scope):
    """The recorded table, indexed by kind and full name."""
    frame = scope.trace().to_pandas()
    names = (frame.module + "." + frame.parameter).str.strip(".")
    return frame.assign(name=names)


def recorded(scope, kind, name, statistic="norm"):
    """All recorded values of one statistic of one tensor, in order of steps."""
    frame = table(scope)
    return frame[(frame.kind == kind) & (frame.name == name)][statistic].tolist()


# What is measured


def test_parameter_statistics_are_those_of_autograd():
    """Each statistic of each gradient equals the textbook formula applied to parameter.grad."""
    model = mlp(40, 200, 30, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with gradscope.watch(model, optimizer, every=1) as scope:
        step(model, optimizer, torch.randn(8, 40))
    rows = table(scope).query("kind == 'weight'").set_index("name")
    for name, parameter in model.named_parameters():
        grad, row = parameter.grad.double(), rows.loc[name]
        assert row.norm == pytest.approx(float(grad.norm()), rel=1e-5)
        assert row.rms == pytest.approx(float(grad.square().mean().sqrt()), rel=1e-5)
        assert row.abs_max == pytest.approx(float(grad.abs().max()), rel=1e-6)
        assert row.weight_norm == pytest.approx(float(before[name].norm()), rel=1e-5)
        assert row.nonfinite_fraction == 0
        update = (parameter.detach() - before[name]).norm() / before[name].norm()
        whole = parameter.numel() <= 4096
        assert row.update_ratio == pytest.approx(float(update), rel=1e-3)
        zeros = float((grad == 0).double().mean())
        assert row.zero_fraction == pytest.approx(zeros, abs=1e-6 if whole else 0.03)


def test_output_statistics_are_those_of_autograd():
    """Outputs and the gradients at them equal those taken by retain_grad in a second pass."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = torch.randn(5, 3, 8, 8)
    with gradscope.watch(model, optimizer, every=1) as scope:
        step(model, optimizer, inputs)
    values, hidden = inputs, []
    for layer in model:
        values = layer(values)
        values.retain_grad()
        hidden.append(values)
    values.square().sum().backward()
    for i, tensor in enumerate(hidden):
        assert recorded(scope, "activation", str(i)) == [
            pytest.approx(float(tensor.detach().norm()), rel=1e-5)
        ]
        assert recorded(scope, "activation", str(i), "abs_max") == [
            pytest.approx(float(tensor.detach().abs().max()), rel=1e-6)
        ]
        assert recorded(scope, "activation_grad", str(i)) == [
            pytest.approx(float(tensor.grad.norm()), rel=1e-5)
        ]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_recording_never_changes_the_numbers(optimizer):
    """Losses and weights are bit-identical with and without the recorder, dropout included."""

    def train(*, watched):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(8 * 36, 4),
        )
        made = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2)
        scope = gradscope.watch(model, made, every=2, histograms=True) if watched else None
        losses = [step(model, made, torch.randn(4, 3, 8, 8), clip=1.0) for _ in range(7)]
        if scope:
            scope.close()
        return losses, model.state_dict()

    plain, watched = train(watched=False), train(watched=True)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert all(torch.equal(plain[1][k], watched[1][k]) for k in plain[1])


def test_update_of_a_large_parameter_is_estimated_from_a_sample():
    """A million weights moved by SGD: the sampled update ratio is within three standard errors."""
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    with gradscope.watch(model, optimizer, every=1) as scope:
        step(model, optimizer, torch.randn(64, 1000))
    update = (model.weight.detach() - before).norm() / before.norm()
    error = 3 / (2 * 16384) ** 0.5  # of the norm of a normal sample
    assert recorded(scope, "weight", "weight", "update_ratio") == [
        pytest.approx(float(update), rel=error)
    ]


def test_relu_zero_fraction_and_dead_units():
    """A ReLU whose first half of units is pushed below zero shows half of its units dead."""
    layer = nn.Linear(4, 100)
    with torch.no_grad():
        layer.weight[:50] = 0
        layer.bias[:50] = -1
        layer.weight[50:] = 0
        layer.bias[50:] = 1
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(100, 1))
    with gradscope.watch(model, every=1) as scope:
        model(torch.randn(6, 4)).sum().backward()
        scope.step()
    assert recorded(scope, "activation", "1", "zero_fraction") == [pytest.approx(0.5)]
    assert recorded(scope, "activation", "1", "dead_fraction") == [pytest.approx(0.5)]


def test_a_unit_is_dead_only_while_it_was_not_active():
    """Dead units are counted over many recorded batches: one active batch brings a unit to life."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
    with gradscope.watch(model, every=1) as scope:
        for batch in ([[-1.0, -1.0]], [[1.0, -1.0]], [[-1.0, -1.0]]):
            model(torch.tensor(batch)).sum().backward()
            scope.step()
    assert recorded(scope, "activation", "0", "dead_fraction") == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("value", [1.0, math.inf, math.nan])
def test_norms_only_leaves_out_the_rest(value):
    """Norms and shares of NaN and Inf as ever; no weights, updates and elements of outputs."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tables = []
    for norms_only in (False, True):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        with gradscope.watch(twin, optimizer, every=1, norms_only=norms_only) as scope:
            step(twin, optimizer, torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, value]]))
        tables.append(table(scope))
    whole, norms = tables
    assert norms.norm.tolist() == pytest.approx(whole.norm.tolist(), rel=1e-6, nan_ok=True)
    assert norms.nonfinite_fraction.tolist() == pytest.approx(whole.nonfinite_fraction.tolist())
    assert whole.nonfinite_fraction.any() == (not math.isfinite(value))
    assert norms.kind.tolist() == whole.kind.tolist()
    left_out = ["weight_norm", "update_ratio", "saturated_fraction", "dead_fraction"]
    assert norms[left_out].isna().all().all()
    if math.isfinite(value):
        assert whole[left_out].notna().any().all()
    outputs, elements = norms.kind == "activation", ["abs_max", "zero_fraction"]
    assert norms[outputs][elements].isna().all().all()
    assert norms[norms.kind == "weight"].zero_fraction.notna().all()


def test_saturation_of_tanh():
    """A tanh that is fed +-10 on three of four inputs is saturated to three quarters."""
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 1))
    with gradscope.watch(model, every=1) as scope:
        model(torch.tensor([[10.0, -10.0, 10.0, 0.1]])).sum().backward()
        scope.step()
    assert recorded(scope, "activation", "0", "saturated_fraction") == [pytest.approx(0.75)]


# Awkward modules


@dataclass
class Pair:
    """An output that is a dataclass."""

    left: torch.Tensor
    right: torch.Tensor | None = None


class Returns(nn.Module):
    """A module that returns its output in some wrapping."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.wrap = wrap

    def forward(self, x):
        """Wrap the output."""
        return self.wrap(self.linear(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x * 2, None),
        lambda x: {"a": x * 2, "n": 3},
        lambda x: Pair(x * 2),
        lambda x: [{"deep": (x * 2,)}],
    ],
    ids=["tuple", "dict", "dataclass", "nested"],
)
def test_wrapped_outputs(wrap):
    """Tuples, dicts, dataclasses and their nesting are looked into."""
    model = Returns(wrap)
    with gradscope.watch(model, every=1) as scope:
        sum_of(model(torch.ones(2, 3))).backward()
        scope.step()
    frame = table(scope)
    assert len(frame[(frame.kind == "activation_grad") & (frame.module == "")]) == 1


def test_a_module_that_returns_nothing():
    """A module that returns None is passed over."""

    class Logs(nn.Module):
        def forward(self, x):
            del x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log, self.linear = Logs(), nn.Linear(2, 1)

        def forward(self, x):
            self.log(x)
            return self.linear(x)

    model = Net()
    with gradscope.watch(model, every=1) as scope:
        model(torch.ones(1, 2)).sum().backward()
        scope.step()
    assert recorded(scope, "activation_grad", "linear") == [1.0]


def test_in_place_relu_sees_the_gradient_before_and_after():
    """In-place ReLU: before it the gradient is masked, after it whole."""
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, nn.ReLU(inplace=True))
    inputs = torch.randn(3, 4)
    with gradscope.watch(model, every=1) as scope:
        model(inputs).sum().backward()
        scope.step()
    active = float((linear(inputs) > 0).sum())
    assert recorded(scope, "activation_grad", "0") == [pytest.approx(active**0.5)]
    assert recorded(scope, "activation_grad", "1") == [pytest.approx(12**0.5)]


def test_repeated_calls_are_told_apart():
    """A cell that runs three times has three outputs, and the gradient of each."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            for _ in range(3):
                x = self.cell(x)
            return x

    model = Loop()
    nn.init.eye_(model.cell.weight)
    model.cell.weight.data *= 3
    with gradscope.watch(model, every=1) as scope:
        model(torch.ones(1, 2)).sum().backward()
        scope.step()
    frame = table(scope).query("kind == 'activation_grad' and module == 'cell'")
    assert frame.sort_values("call")["norm"].tolist() == pytest.approx(
        [9 * 2**0.5, 3 * 2**0.5, 2**0.5]
    )
    assert [b.name for b in scope.trace().structure.blocks] == ["cell", "cell[1]", "cell[2]"]


def test_unused_frozen_and_shared_parameters():
    """Parameters that nobody used, that are frozen and that two modules share are named as such."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.never, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.b(self.a(x)))

    model = Net()
    with gradscope.watch(model, every=1) as scope:
        model(torch.ones(1, 2)).sum().backward()
        scope.step()
    structure = scope.trace().structure
    assert structure.unused == ("never.weight", "never.bias")
    assert structure.frozen == ("frozen.weight", "frozen.bias")
    assert structure.shared == {"b.weight": "a.weight"}
    assert set(table(scope).query("kind == 'weight'").name) == {"a.weight", "a.bias", "b.bias"}


def test_modules_used_outside_forward_of_the_root():
    """Calling the parts of a model by hand records them as well."""
    model = nn.ModuleDict({"enc": nn.Linear(3, 4), "dec": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            model["dec"](model["enc"](torch.ones(1, 3))).sum().backward()
            optimizer.step()
    assert len(recorded(scope, "activation_grad", "enc")) == 2
    assert [b.name for b in scope.trace().structure.blocks] == ["enc", "dec"]


ZOO = {
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2), torch.randn(7, 2, 4)),
    "gru": (lambda: nn.GRU(4, 5, batch_first=True), torch.randn(2, 7, 4)),
    "attention": (
        lambda: Returns(lambda x: nn.MultiheadAttention(3, 1)(x, x, x)),
        torch.randn(5, 2, 3),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        torch.randn(2, 5, 8),
    ),
    "float64": (lambda: mlp(3, 4, 2).double(), torch.randn(2, 3).double()),
    "complex": (lambda: nn.Linear(3, 2, dtype=torch.complex64), torch.randn(2, 3) + 0j),
    "bfloat16": (lambda: mlp(3, 4, 2).bfloat16(), torch.randn(2, 3).bfloat16()),
    "no parameters": (lambda: nn.Sequential(nn.ReLU()), torch.randn(2, 3, requires_grad=True)),
}


@pytest.mark.parametrize("name", ZOO)
def test_zoo_of_layers(name):
    """Every trainable parameter of awkward layers gets the norm that autograd gives it."""
    build, inputs = ZOO[name]
    model = build()
    with gradscope.watch(model, every=1) as scope:
        output = model(inputs)
        from gradscope.nested import tensors_in

        sum(t.abs().square().sum() for t in tensors_in(output)).backward()
        scope.step()
    rows = table(scope).query("kind == 'weight'").set_index("name")["norm"]
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert parameter_name not in rows
        else:
            expected = float(torch.linalg.vector_norm(parameter.grad).real)
            assert rows[parameter_name] == pytest.approx(
                expected, rel=1e-2 if name == "bfloat16" else 1e-5
            )


def test_sparse_embedding_gradient():
    """A sparse gradient has the norm of its dense form, and its unstored elements are zeros."""
    model = nn.Embedding(10, 4, sparse=True)
    with gradscope.watch(model, every=1) as scope:
        model(torch.tensor([1, 1, 3])).sum().backward()
        scope.step()
    dense = model.weight.grad.to_dense()
    assert recorded(scope, "weight", "weight") == [pytest.approx(float(dense.norm()))]
    assert recorded(scope, "weight", "weight", "zero_fraction") == [pytest.approx(0.8)]


@pytest.mark.parametrize("wanted", [True, False])
def test_fused_recurrent_layer_shows_the_flow_through_time(wanted):
    """The gradient at each time step of an LSTM's input equals autograd's, raw inputs included."""
    model = nn.LSTM(3, 4)
    inputs = torch.randn(6, 2, 3, requires_grad=wanted)
    with gradscope.watch(model, every=1) as scope:
        model(inputs)[0][-1].sum().backward()
        scope.step()
    assert (inputs.grad is not None) == wanted
    if not wanted:
        inputs.requires_grad_()
        model(inputs)[0][-1].sum().backward()
    frame = scope.trace().to_pandas()
    frame = frame[frame.output == gradscope.trace.TIME]
    expected = inputs.grad.flatten(1).norm(dim=1)
    assert frame.sort_values("call")["norm"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


# The training loop


def test_gradient_clipping_gives_both_norms():
    """The norm before clipping is autograd's, the one after it what the optimizer consumed."""
    model = mlp(3, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = torch.randn(4, 3)
    model(inputs).square().sum().backward()
    before = {n: float(p.grad.norm()) for n, p in model.named_parameters()}
    with gradscope.watch(model, optimizer, every=1) as scope:
        step(model, optimizer, inputs, clip=1e-3)
    for name, parameter in model.named_parameters():
        assert recorded(scope, "weight", name, "unclipped_norm") == [pytest.approx(before[name])]
        assert recorded(scope, "weight", name) == [pytest.approx(float(parameter.grad.norm()))]
        assert recorded(scope, "weight", name)[0] < 1e-3


def replaced_twice(parameter):
    """The second new gradient may lie where the first one of the step lay."""
    parameter.grad = parameter.grad * 0.5
    parameter.grad = parameter.grad * 0.5


CHANGES = {
    "data clamped": lambda p: p.grad.data.clamp_(-1e-3, 1e-3),
    "data scaled": lambda p: p.grad.data.mul_(0.25),
    "as an extension": lambda p: np.multiply(p.grad.numpy(), 0.25, out=p.grad.numpy()),
    "replaced": lambda p: setattr(p, "grad", p.grad * 0.25),
    "replaced twice": replaced_twice,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_norm_is_what_the_optimizer_consumes_however_it_was_changed(change):
    """Changes that leave no trace in the gradient's identity and version are found as well."""
    model = mlp(40, 400, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(4, 40)
            inputs[0, 0] = 1e3
            model(inputs).square().sum().backward()
            before = {n: float(p.grad.double().norm()) for n, p in model.named_parameters()}
            for parameter in model.parameters():
                change(parameter)
            optimizer.step()
    for name, parameter in model.named_parameters():
        norm, largest = float(parameter.grad.double().norm()), float(parameter.grad.abs().max())
        assert recorded(scope, "weight", name)[-1] == pytest.approx(norm)
        assert recorded(scope, "weight", name, "abs_max")[-1] == pytest.approx(largest)
        assert recorded(scope, "weight", name, "unclipped_norm")[-1] == pytest.approx(before[name])


def test_each_step_has_its_own_share_of_zeros():
    """Also of gradients written by hand into the tensors of the step before, without a backward."""
    parameter = nn.Parameter(torch.zeros(8))
    parameter.grad = torch.ones(8)
    model = nn.ParameterList([parameter])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for zeros in range(6):
            parameter.grad.data[:zeros] = 0
            optimizer.step()
    shares = recorded(scope, "weight", "0", "zero_fraction")
    assert shares == [pytest.approx(zeros / 8, abs=1e-6) for zeros in range(6)]


def test_accumulation_gives_one_record_of_the_sum():
    """Three micro-batches and one step: one row per tensor, with the accumulated gradient."""
    model = mlp(3, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(3):
                model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
    assert len(scope.trace().steps) == 2
    for name, parameter in model.named_parameters():
        assert recorded(scope, "weight", name)[1] == pytest.approx(float(parameter.grad.norm()))


def test_two_optimizers_share_a_step():
    """Generator and discriminator style: each optimizer's parameters are taken at its own step."""
    model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)})
    optimizers = [torch.optim.Adam(model[k].parameters(), lr=0.1) for k in ("g", "d")]
    with gradscope.watch(model, optimizers, every=1) as scope:
        for _ in range(3):
            for optimizer, loss in zip(
                optimizers,
                (
                    lambda: model["d"](model["g"](torch.ones(1, 2))).sum(),
                    lambda: model["d"](torch.ones(1, 2)).square().sum(),
                ),
                strict=True,
            ):
                for each in optimizers:
                    each.zero_grad()
                loss().backward()
                optimizer.step()
    assert [s.step for s in scope.trace().steps] == [0, 1, 2]
    assert len(recorded(scope, "weight", "g.weight")) == 3
    last = float(model["d"].weight.grad.norm())
    assert recorded(scope, "weight", "d.weight")[-1] == pytest.approx(last)


def test_lbfgs_calls_its_closure_many_times():
    """L-BFGS: one record per step, finite, though the closure runs several times."""
    model = mlp(3, 4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    inputs, targets = torch.randn(8, 3), torch.randn(8, 1)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.step(closure)
    assert len(scope.trace().steps) == 3
    assert all(math.isfinite(n) for n in recorded(scope, "weight", "0.weight"))


def test_validation_between_steps_is_not_recorded():
    """A pass without gradients leaves no trace, even within a recorded step."""
    model = mlp(3, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = torch.randn(2, 3)
    with gradscope.watch(model, optimizer, every=1) as scope:
        with torch.no_grad():
            model(100 * batch)
        step(model, optimizer, batch)
    assert recorded(scope, "activation", "0") == [
        pytest.approx(float(model[0](batch).detach().norm()))
    ]


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_once(reentrant):
    """Checkpointing runs the forward twice; the record is that of the plain network."""

    class Net(nn.Module):
        def __init__(self, *, saved):
            super().__init__()
            torch.manual_seed(1)
            self.first, self.blocks = nn.Linear(4, 4), nn.ModuleList(mlp(4, 6, 4) for _ in range(3))
            self.saved = saved

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant) if self.saved else block(x)
            return x

    tables = []
    inputs = torch.randn(5, 4)
    for saved in (False, True):
        model = Net(saved=saved)
        with gradscope.watch(model, every=1) as scope:
            model(inputs).square().sum().backward()
            scope.step()
        frame = table(scope)
        tables.append(frame.groupby(["kind", "name", "call"])["norm"].agg(["size", "first"]))
    plain, saved = tables
    assert saved.index.equals(plain.index)
    assert (saved["size"] == 1).all()
    assert saved["first"].tolist() == pytest.approx(plain["first"].tolist(), rel=1e-5)


def test_loss_scaling_records_unscaled_gradients_and_marks_skipped_steps():
    """With a GradScaler the norms are those of the consumed gradient; an Inf step is skipped."""
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inputs = torch.randn(6, 4)
    with gradscope.watch(model, optimizer, every=1, scaler=scaler) as scope:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(inputs).square().sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    trace = scope.trace()
    assert [s.skipped for s in trace.steps] == [False, True, False]
    assert [s.loss_scale for s in trace.steps] == [1024.0, 1024.0, 512.0]
    optimizer.zero_grad()
    output = model[1](model[0](inputs))
    output.retain_grad()
    model[2](output).square().sum().backward()
    expected = float(model[0].weight.grad.norm())
    for statistic in ("norm", "unclipped_norm"):
        found = recorded(scope, "weight", "0.weight", statistic)
        assert found[0] == pytest.approx(expected, rel=1e-5)
        assert found[2] == pytest.approx(expected, rel=1e-5)
    at_output = recorded(scope, "activation_grad", "1")
    assert at_output[0] == pytest.approx(float(output.grad.norm()), rel=1e-5)
    assert at_output[2] == pytest.approx(float(output.grad.norm()), rel=1e-5)


def test_autocast_is_recorded_in_float32():
    """Under bf16 autocast the norms agree with full precision to bf16's precision."""
    model = mlp(16, 32, 4)
    inputs = torch.randn(8, 16)
    with gradscope.watch(model, every=1) as scope:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(inputs).float().square().sum()
        loss.backward()
        scope.step()
    model.zero_grad()
    model(inputs).square().sum().backward()
    for name, parameter in model.named_parameters():
        found = recorded(scope, "weight", name)[0]
        assert found == pytest.approx(float(parameter.grad.norm()), rel=0.05)


# Non-finite numbers


def test_where_nan_began():
    """The first step and the first tensor with NaN are found, and NaN stays in the table."""
    model = mlp(3, 4, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for i in range(4):
            if i == 2:
                model[2].weight.data[0, 0] = math.nan
            step(model, optimizer, torch.randn(2, 3))
    found = scope.trace().first_nonfinite()
    assert (found.step, found.tensor.kind, found.tensor.name) == (2, "activation", "2")
    frame = table(scope)
    assert frame[(frame.step == 3) & (frame.name == "2.weight")]["norm"].isna().all()
    assert (frame[(frame.step == 3) & (frame.name == "2.weight")].nonfinite_fraction > 0).all()
    assert (frame[frame.step < 2].nonfinite_fraction == 0).all()


def test_one_nan_among_many_elements_is_counted():
    """One NaN in an output of a million elements is seen, though shares come from a sample."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(0), nn.ReLU())
    inputs = torch.randn(1000, 1000, requires_grad=True)
    with torch.no_grad():
        inputs[123, 457] = math.inf
    with gradscope.watch(model, every=1) as scope:
        model(inputs).sum().backward()
        scope.step()
    assert recorded(scope, "activation", "2", "nonfinite_fraction") == [pytest.approx(1e-6)]


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_norms_whose_squares_leave_float32(scale):
    """Gradients of 1e-30 have a norm, and of 1e30 a finite one: squares may leave the range."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Identity())
    inputs = torch.randn(5, 4)
    with gradscope.watch(model, every=1) as scope:
        (model(inputs).sum() * scale).backward()
        scope.step()
    expected = float(model[0].weight.grad.double().norm())
    assert recorded(scope, "weight", "0.weight") == [pytest.approx(expected, rel=1e-5)]
    assert recorded(scope, "activation_grad", "0") == [pytest.approx(scale * 15**0.5, rel=1e-5)]
    assert recorded(scope, "weight", "0.weight", "nonfinite_fraction") == [0.0]


# Steps, thinning, memory


def test_sampling_and_epochs():
    """every=3 records steps 0, 3, 6 and writes the epoch that the loop set."""
    model = mlp(2, 2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=3) as scope:
        for i in range(8):
            scope.epoch = 1 + i // 4
            step(model, optimizer, torch.randn(1, 2))
    assert [(s.step, s.epoch) for s in scope.trace().steps] == [(0, 1), (3, 1), (6, 2)]


def test_a_long_run_is_thinned():
    """However long the run, at most max_steps stay: the first sixteen and an even spread."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, every=1, max_steps=64) as scope:
        for _ in range(3000):
            step(model, optimizer, torch.ones(1, 1))
        size = scope._buffer._areas[torch.device("cpu")].ring.numel()
    steps = [s.step for s in scope.trace().steps]
    assert len(steps) <= 64
    assert steps[:16] == list(range(16))
    gaps = {b - a for a, b in itertools.pairwise(steps[20:])}
    assert len(gaps) == 1
    assert steps[-1] > 3000 - 2 * gaps.pop()
    assert size < 64 * 10 * 64 * 2  # ring rows x statistics x columns


def test_histograms_count_powers_of_two():
    """Every gradient element lands in the bin of floor(log2|g|)."""
    model = nn.Linear(4, 1, bias=False)
    with gradscope.watch(model, every=1, histograms=True) as scope:
        model(torch.tensor([[1.0, 0.3, 8.0, 0.0]])).sum().backward()
        scope.step()
    trace = scope.trace()
    low = gradscope.trace.HISTOGRAM_RANGE[0]
    column = [t.name for t in trace.tensors].index("weight")
    counts = trace.histograms[0, column]
    expected = torch.zeros_like(counts)
    for exponent in (0, -2, 3):
        expected[exponent - low] += 1
    assert torch.equal(counts, expected)


# Attaching and detaching


def test_nothing_is_left_after_close():
    """After close: no hook, no attribute, the same state_dict; copies work throughout."""
    model = mlp(3, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {n: sorted(vars(m)) for n, m in model.named_modules()}
    keys = list(model.state_dict())
    scope = gradscope.watch(model, optimizer, every=1)
    step(model, optimizer, torch.randn(2, 3))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(not m._forward_hooks for m in twin.modules())
    torch.save(model, io.BytesIO())
    scope.close()
    scope.close()
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == names
    assert list(model.state_dict()) == keys
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert len(scope.trace()) > 0


def test_scopes_of_a_model_and_of_its_part_do_not_disturb_each_other():
    """Both record in every step what each records alone."""
    batch = torch.randn(4, 5)

    def norms(*watched):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), mlp(5, 3, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scopes = [gradscope.watch(part(model), optimizer, every=1) for part in watched]
        for _ in range(4):
            step(model, optimizer, batch)
        for scope in scopes:
            scope.close()
        return [scope.trace().values.nan_to_num(-1.0) for scope in scopes]

    whole, part = (lambda model: model), (lambda model: model[1])
    for outer_first in (True, False):
        both = norms(whole, part) if outer_first else norms(part, whole)[::-1]
        assert torch.equal(both[0], norms(whole)[0])
        assert torch.equal(both[1], norms(part)[0])


def test_forgetting_to_close_leaks_nothing():
    """When the model and the scope go out of reach, both are freed and the hook goes with them."""
    model = mlp(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.watch(model, optimizer, every=1)
    step(model, optimizer, torch.randn(1, 2))
    gone = [weakref.ref(model), weakref.ref(scope)]
    del model, optimizer, scope
    gc.collect()
    assert [r() for r in gone] == [None, None]
    nn.Identity()(torch.ones(1))  # the orphaned hook removes itself at the next call


# Compilation


def test_the_graph_of_a_step_is_freed_with_it():
    """No cycle keeps a step's graph alive until the garbage collector comes."""

    class Witness(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.witness = Owner()
            alive.append(weakref.ref(ctx.witness))
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    class Owner:
        pass

    class Layer(nn.Module):
        def forward(self, x):
            return Witness.apply(x)

    alive = []
    model = nn.Sequential(nn.Linear(3, 3), Layer(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        with gradscope.watch(model, optimizer, every=1):
            for _ in range(4):
                step(model, optimizer, torch.randn(2, 3))
                assert alive[-1]() is None
    finally:
        gc.enable()


def test_tensors_of_the_inference_mode_pass_through():
    """A tensor that was made in the inference mode and is handed on outside of it does no harm."""
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            with torch.inference_mode():
                inputs = torch.ones(2, 4)
            assert model[0](inputs) is inputs
            step(model, optimizer, torch.ones(2, 4))
    frame = scope.trace().to_pandas()
    assert len(frame[(frame.kind == "activation_grad") & (frame.module == "1")]) == 3


def test_hooks_of_users_stay_with_their_tensor():
    """A hook that a user sets on an output is called for that output, not for later ones."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            hidden, number = self.first(x), len(calls)
            calls.append(0)

            def count(gradient):
                calls[number] += 1

            hidden.register_hook(count)
            return self.last(hidden)

    calls: list[int] = []
    model = Hooked()
    with gradscope.watch(model, every=1) as scope:
        losses = []
        for _ in range(5):
            losses.append(model(torch.randn(2, 3)).sum())
            losses[-1].backward(retain_graph=True)
            scope.step()
        assert calls == [1] * 5
        losses[2].backward()
    assert calls == [1, 1, 2, 1, 1]


@pytest.mark.parametrize("late", [True, False], ids=["what is in it", "what was compiled"])
def test_compiled_models_say_what_they_hide(late):
    """A compiled container gives its parameter gradients, and its outputs or one warning.

    Of a container of torch's own no call is seen but that of what `torch.compile` gave.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = mlp(3, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    compiled = torch.compile(model, backend="eager")
    inputs = torch.randn(2, 3)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not late:
            compiled(inputs)
        watched = model if late else compiled
        with gradscope.watch(watched, optimizer, every=1) as scope:
            for _ in range(3):
                step(compiled, optimizer, inputs)
    ours = [w for w in caught if issubclass(w.category, GradscopeWarning)]
    assert len(ours) == len(scope.blind_spots) == late
    assert all("torch.compile" in str(w.message) for w in ours)
    assert ("activation_grad" in set(scope.trace().to_pandas().kind)) is not late
    for name, parameter in watched.named_parameters():  # `_orig_mod.0.weight` as compiled
        assert recorded(scope, "weight", name) == pytest.approx([float(parameter.grad.norm())] * 3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if late else 2)


@pytest.mark.parametrize("how", ["watch", "probe", "fault"])
def test_a_network_that_is_deleted_is_freed_at_once(how, monkeypatch):
    """No cycle of the recorder's holds it until the garbage collector comes by."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    model.append(type("First", (nn.Module,), {"forward": lambda _, x: x[0]})())
    inputs = torch.randn(3, 2, 4)
    gone = weakref.ref(model)
    kept = []
    gc.collect()
    gc.disable()
    try:
        if how == "probe":
            kept.append(gradscope.probe(model, inputs))
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            monkeypatch.delenv("GRADSCOPE_STRICT", raising=False)
            scope = gradscope.watch(model, optimizer, every=1)
            kept += [scope, scope.trace]
            for _ in range(3):
                model(inputs).sum().backward()
                optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GradscopeWarning)
                if how == "fault":
                    scope._guard.trip("for a test", RuntimeError("on purpose"))
                scope.close()
            del optimizer
        del model
        assert gone() is None
    finally:
        gc.enable()
    assert len(kept[0] if how == "probe" else kept[0].trace())
