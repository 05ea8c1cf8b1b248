"""What gradients held already when a backward pass began, against the loop that made them."""

import math

import pytest
import torch
from torch import nn

import gradscope
from gradscope.recording import kernels
from gradscope.trace.vocabulary import STATISTICS


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _both_meters(request, monkeypatch):
    """Everything holds with the compiled kernels and with what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)


def carried(scope, name="weight"):
    """`carried_norm` of one parameter at each recorded step."""
    trace = scope.trace()
    tensors = [f"{t.module}.{t.parameter}".strip(".") for t in trace.tensors]
    chosen = [i for i, t in enumerate(trace.tensors) if t.kind == "weight" and tensors[i] == name]
    return trace.values[:, chosen[0], list(STATISTICS).index("carried_norm")].tolist()


def backward(model):
    """One backward pass on fresh inputs."""
    model(torch.randn(5, 3)).square().sum().backward()


@pytest.mark.parametrize("numel", [3, 30_000])
def test_without_zero_grad_it_is_the_gradient_of_the_last_step(numel):
    """Oracle: the norm of what stood in .grad just before backward; a sample of large ones."""
    model = nn.Linear(3, numel // 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    expected = []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(4):
            expected.append(0.0 if model.weight.grad is None else float(model.weight.grad.norm()))
            backward(model)
            optimizer.step()
    assert carried(scope) == pytest.approx(expected, rel=1e-5 if numel == 3 else 0.1)
    assert expected[1] > 0


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("passes", [1, 4])
def test_what_a_loop_adds_up_on_purpose_is_not_carried(to_none, passes):
    """Emptied once a step, filled by one or several passes: nothing, however it is emptied."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(4):
            optimizer.zero_grad(set_to_none=to_none)
            for _ in range(passes):
                backward(model)
            optimizer.step()
    assert carried(scope) == [0.0] * 4


def test_gradients_emptied_between_two_passes_are_not_carried():
    """A pass of somebody else leaves its gradient, which is emptied before the one that counts."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            backward(model)
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    assert carried(scope) == [0.0] * 3


def test_what_counts_is_what_the_optimizer_took():
    """Emptying the gradients after a step, for another optimizer, does not clean that step."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    both = [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in model]
    with gradscope.watch(model, both, every=1) as scope:
        for _ in range(3):
            backward(model)
            both[0].step()
            model.zero_grad()
            backward(model)
            both[1].step()
    assert carried(scope, "1.weight") == [0.0] * 3
    first = carried(scope, "0.weight")
    assert first[0] == 0
    assert min(first[1:]) > 0


def test_it_is_looked_at_in_few_steps():
    """The first four recorded steps and every eighth: elsewhere nothing is known."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=2) as scope:
        for _ in range(40):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    known = [i for i, value in enumerate(carried(scope)) if not math.isnan(value)]
    assert known == [0, 1, 2, 3, 8, 16]


@pytest.mark.parametrize("to_none", [True, False])
def test_a_gradient_emptied_before_the_step_is_recorded_as_zero(to_none):
    """What the optimizer takes is nothing; what backward had made is kept beside it."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    made = []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            backward(model)
            made.append(float(model.weight.grad.norm()))
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()
    table = scope.trace().to_pandas()
    table = table[(table.kind == "weight") & (table.parameter == "weight")]
    assert table.norm.tolist() == table.abs_max.tolist() == [0.0] * 3
    assert table.zero_fraction.tolist() == [1.0] * 3
    assert table.unclipped_norm.tolist() == pytest.approx(made, rel=1e-5)


def test_a_gradient_emptied_by_hand_before_the_step_ends_is_recorded_as_it_was():
    """No optimizer: it moved the weights and was emptied, and then scope.step(); no cut is told."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    made = []
    with gradscope.watch(model, every=1) as scope:
        for _ in range(3):
            model(torch.randn(5, 3)).square().sum().backward()
            for parameter in model.parameters():
                made.append(float(parameter.grad.norm()))
                parameter.data.sub_(parameter.grad, alpha=0.01)
            model.zero_grad()
            scope.step()
    trace = scope.trace()
    table = trace.to_pandas().query("kind == 'weight'")
    assert table.step.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table.norm.tolist() == pytest.approx(made, rel=1e-5)
    assert gradscope.diagnose(trace).verdict != "disconnected"
