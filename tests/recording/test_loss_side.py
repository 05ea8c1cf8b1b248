"""The loss is found where backward stands, its operations and targets are what they were."""

import gc
import itertools
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import gradscope
from gradscope.recording import loss_side


def recorded(model, loss, steps=3, optimizer=None, **options):
    """Train for a few steps; the trace and the losses that the loop saw."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    with gradscope.watch(model, optimizer, every=1, **options) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            seen.append(value.item())
            value.backward()
            optimizer.step()
    return scope.trace(), seen


def regression(seed=0, out=1):
    """A small network with inputs and targets."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, out))
    return model, torch.randn(16, 4), 3 * torch.randn(16, out) + 10


def test_the_value_is_the_loss_of_each_step():
    """As float32, exactly."""
    model, x, y = regression()
    trace, seen = recorded(model, lambda: functional.mse_loss(model(x), y))
    assert [step.loss for step in trace.steps] == seen


@pytest.mark.parametrize("begin", ["backward", "grad"])
def test_either_way_of_beginning_is_seen(begin):
    """torch.autograd.backward on a tuple, and torch.autograd.grad."""
    model, x, y = regression()
    with gradscope.watch(model, every=1) as scope:
        loss = functional.mse_loss(model(x), y)
        if begin == "backward":
            torch.autograd.backward((loss,))
        else:
            torch.autograd.grad(loss, list(model.parameters()))
        scope.step()
    assert scope.trace().steps[0].loss == loss.item()


def test_a_backward_pass_that_begins_with_no_number_is_not_the_loss():
    """Two tensors, or one with many elements, have no value to record."""
    model, x, y = regression()
    with gradscope.watch(model, every=1) as scope:
        out = model(x)
        torch.autograd.backward((out.sum(), (out - y).sum()))
        scope.step()
        out = model(x)
        out.backward(torch.ones_like(out))
        scope.step()
    assert [step.loss for step in scope.trace().steps] == [None, None]


def test_a_penalty_on_a_gradient_is_not_the_loss():
    """The first pass of the step is grad(..., create_graph=True); the second has the loss."""
    model, x, y = regression()
    x.requires_grad_()

    def loss():
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.mse_loss(out, y) + slope.square().mean()

    trace, seen = recorded(model, loss)
    assert [step.loss for step in trace.steps] == seen


def test_loss_scale_is_taken_out():
    """Under a GradScaler that is known, backward begins with the scaled loss."""
    model, x, y = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen = []
    with gradscope.watch(model, optimizer, every=1, scaler=scaler) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x), y)
            seen.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    trace = scope.trace()
    assert [step.loss for step in trace.steps] == seen  # a power of two
    assert trace.structure.loss.operations[-1] == "MseLossBackward0"
    assert trace.structure.loss.targets[0].mean == pytest.approx(y.mean().item(), rel=1e-4)


def test_the_thread_of_a_device_finds_the_loss_in_another_thread():
    """On a GPU the hook runs in a thread that has no frame of the caller."""
    found = []

    def look(grad):
        thread = threading.Thread(target=lambda: found.append(loss_side._running()))
        thread.start()
        thread.join()

    out = torch.ones(3, requires_grad=True) * 2
    out.register_hook(look)
    loss = out.sum()
    loss.backward()
    assert found[0] is loss


def test_outside_a_backward_pass_there_is_no_loss():
    """Nothing begins a pass here."""
    assert loss_side._running() is None


def test_nothing_of_the_graph_is_held():
    """After the step the loss and its graph are gone."""
    model, x, y = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.watch(model, optimizer, every=1):
        loss = functional.mse_loss(model(x), y)
        kept = weakref.ref(loss)
        loss.backward()
        optimizer.step()
        del loss
        gc.collect()
        assert kept() is None


OPERATIONS = {
    "cross entropy": (lambda o: functional.cross_entropy(o, torch.zeros(16).long()),
                      ("AddmmBackward0", "LogSoftmaxBackward0", "NllLossBackward0")),
    "by hand": (lambda o: (o.softmax(1) + 1e-8).log().mean().neg(),
                ("AddmmBackward0", "SoftmaxBackward0", "AddBackward0", "LogBackward0",
                 "MeanBackward0", "NegBackward0")),
    "weighted": (lambda o: (o.sigmoid() * 2).sum() / 3,
                 ("AddmmBackward0", "SigmoidBackward0", "MulBackward0", "SumBackward0",
                  "DivBackward0")),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_in_the_order_of_computation(name):
    """From what made the output to what made the loss."""
    loss, expected = OPERATIONS[name]
    model, x, _ = regression(out=5)
    trace, _ = recorded(model, lambda: loss(model(x)), steps=1)
    assert trace.structure.loss.operations == expected
    assert trace.structure.loss.outputs == 1


def test_a_network_that_returns_its_loss():
    """The way begins at the other output; without one, at the last modules."""

    class Net(nn.Module):
        def __init__(self, both):
            super().__init__()
            self.head, self.both = nn.Linear(4, 3), both

        def forward(self, x):
            logits = self.head(x)
            loss = functional.cross_entropy(logits, torch.zeros(16).long())
            return (loss, logits) if self.both else loss

    for both in (True, False):
        model = Net(both)
        x = torch.randn(16, 4)
        trace, _ = recorded(model, lambda m=model, x=x, b=both: m(x)[0] if b else m(x), steps=1)
        told = ("AddmmBackward0", "LogSoftmaxBackward0", "NllLossBackward0")
        assert trace.structure.loss.operations == told


def squared(out, y, reduction):
    """By torch's function."""
    return functional.mse_loss(out, y, reduction=reduction)


def squared_by_hand(out, y, reduction):
    """As people write it."""
    return getattr((out - y) ** 2, reduction)()


@pytest.mark.parametrize(
    ("loss", "reduction"), list(itertools.product([squared, squared_by_hand], ["mean", "sum"]))
)
def test_targets_of_a_squared_error(loss, reduction):
    """Against the targets themselves; the constant prediction against numpy's variance."""
    model, x, y = regression(out=3)
    trace, _ = recorded(model, lambda: loss(model(x), y, reduction), steps=2)
    side, true = trace.structure.loss, y.numpy().astype(np.float64)
    (target,) = side.targets
    assert target.shape == (16, 3)
    for got, expected in [(target.mean, true.mean()), (target.std, true.std()),
                          (target.low, true.min()), (target.high, true.max())]:  # fmt: skip
        assert got == pytest.approx(expected, rel=1e-4)
    spread = true.var(axis=0)
    assert side.constant == pytest.approx(
        spread.mean() if reduction == "mean" else spread.sum() * 16, rel=1e-4
    )


def by_hand(out, y, reduction):
    """The target first."""
    return getattr((y - out).abs(), reduction)()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [functional.l1_loss, by_hand])
def test_sides_of_an_absolute_error(loss, reduction):
    """Against numpy on the outputs and the targets themselves, less two hundredths of the loss."""
    model, x, y = regression(out=3)
    with torch.no_grad():
        out, true = model(x).numpy().astype(np.float64), y.numpy().astype(np.float64)
    trace, _ = recorded(model, lambda: loss(model(x), y, reduction=reduction), steps=2)
    above, below, most = trace.structure.loss.sides
    assert (above, below) == ((true > out).mean(), (true < out).mean())
    signed = np.where(true > out, -true, true).mean()
    assert most == pytest.approx(signed + 0.02 * np.abs(out - true).mean(), rel=1e-4)


@pytest.mark.parametrize("loss", [functional.smooth_l1_loss, functional.huber_loss])
def test_sides_where_a_smooth_error_has_its_bound(loss):
    """A bound on the mean, above the true one; where all are near, nothing is claimed."""
    model, x, y = regression(out=3)
    far = y + 5
    trace, _ = recorded(model, lambda: loss(model(x), far), steps=1)
    above, _, most = trace.structure.loss.sides
    assert above > 0.9
    with torch.no_grad():
        signed = torch.where(far > model(x), -far, far).mean().item()
    assert signed - 1e-4 <= most <= signed + 1.5
    near = model(x).detach() + 0.1
    trace, _ = recorded(model, lambda: loss(model(x), near), steps=1)
    assert trace.structure.loss.sides is None


@pytest.mark.parametrize("loss", [
    lambda o, y: 0.5 * functional.l1_loss(o, y),
    lambda o, y: functional.l1_loss(o * 2, y),
    lambda o, y: functional.l1_loss(o[:8], y[:8]),
    lambda o, y: functional.l1_loss(o, y) + o.square().mean(),
    functional.mse_loss,
])  # fmt: skip
def test_of_other_losses_no_sides_are_claimed(loss):
    """A factor, a part of the output, a penalty."""
    model, x, y = regression(out=3)
    trace, _ = recorded(model, lambda: loss(model(x), y), steps=1)
    assert trace.structure.loss.sides is None


@pytest.mark.parametrize("logits", [True, False])
def test_targets_of_a_binary_cross_entropy(logits):
    """With logits and without; the constant prediction has the entropy of the frequencies."""
    model, x, _ = regression(out=3)
    y = (torch.rand(16, 3) < 0.3).float()
    model = model if logits else nn.Sequential(*model, nn.Sigmoid())
    name = "binary_cross_entropy" + ("_with_logits" if logits else "")
    trace, _ = recorded(model, lambda: getattr(functional, name)(model(x), y), steps=1)
    side, share = trace.structure.loss, y.numpy().astype(np.float64).mean(0)
    assert side.targets[0].mean == pytest.approx(y.mean().item(), abs=1e-5)
    assert side.targets[0].low == pytest.approx(0, abs=1e-4)
    assert side.targets[0].high == pytest.approx(1, abs=1e-4)
    share = np.clip(share, 1e-12, 1 - 1e-12)
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share)).mean()
    assert side.constant == pytest.approx(entropy, abs=1e-4)


def test_class_frequencies_of_a_cross_entropy():
    """Entropy of the classes, with Miller's correction; targets to be ignored do not count."""
    model, x, _ = regression(out=5)
    y = torch.tensor([0] * 8 + [1] * 4 + [3] * 2 + [-100] * 2)
    trace, _ = recorded(model, lambda: functional.cross_entropy(model(x), y), steps=1)
    shares = np.array([8, 4, 2]) / 14
    entropy = -(shares * np.log(shares)).sum()
    assert trace.structure.loss.constant == pytest.approx(entropy + 2 / (2 * 14), rel=1e-5)


@pytest.mark.parametrize("loss", [
    functional.l1_loss,
    lambda o, y: 0.3 * functional.mse_loss(o, y),
    lambda o, y: functional.mse_loss(o, y) + o.abs().mean(),
    lambda o, y: functional.mse_loss(o * torch.linspace(1, 3, 16)[:, None], y),
])  # fmt: skip
def test_of_other_losses_no_targets_are_claimed(loss):
    """A factor, a penalty or another loss makes the gradient tell something else."""
    model, x, y = regression()
    trace, _ = recorded(model, lambda: loss(model(x), y), steps=1)
    assert trace.structure.loss.targets == ()
    assert math.isnan(trace.structure.loss.constant)


def test_losses_are_the_same_with_and_without():
    """Bit for bit, and so are the weights."""
    results = []
    for watched in (True, False):
        model, x, y = regression()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        scope = gradscope.watch(model, optimizer, every=1) if watched else None
        seen = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        if scope is not None:
            scope.close()
        results.append((seen, [p.detach().clone() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
