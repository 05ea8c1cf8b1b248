"""What scope.log() was told: kept by step, through a file, for the diagnosis, in bounded memory."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning
from gradscope.recording.logged import LIMIT, Logged
from gradscope.trace.table import Trace


def train(tell, steps=4, *, after, every=1):
    """A trace; `tell(scope, step, loss)` runs on one side of the optimizer's step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with gradscope.watch(model, optimizer, every=every) as scope:
        for i in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 3)).square().mean()
            losses.append(loss.item())
            loss.backward()
            if not after:
                tell(scope, i, loss)
            optimizer.step()
            if after:
                tell(scope, i, loss)
    return scope.trace(), losses, model


@pytest.mark.parametrize("after", [False, True])
def test_values_stand_at_their_step_on_either_side_of_the_optimizer(after, tmp_path):
    """The loss that the loop saw, tensor and float, at unrecorded steps too, and from a file."""

    def tell(scope, i, loss):
        scope.log(loss=loss, twice=2 * loss.item(), numpy=np.float32(i))

    trace, losses, _ = train(tell, 5, after=after, every=2)
    read = Trace.load(trace.save(tmp_path / "run.parquet"))
    for each in (trace, read):
        assert each.logged["loss"] == tuple(enumerate(losses))
        assert each.logged["twice"] == tuple((i, 2 * loss) for i, loss in enumerate(losses))
        assert each.logged["numpy"] == tuple((i, float(i)) for i in range(5))
        assert "lr/0" in each.logged


def test_a_logged_value_is_that_of_its_moment():
    """A tensor that the loop goes on to change in place."""
    running = torch.zeros(())

    def tell(scope, i, loss):
        scope.log(running=running.add_(1))

    trace, _, _ = train(tell, 3, after=True)
    assert [value for _, value in trace.logged["running"]] == [1.0, 2.0, 3.0]


def test_the_training_is_bit_for_bit_the_same():
    """With tensors of the graph told and without."""
    told = train(lambda scope, i, loss: scope.log(loss=loss), after=False)[2]
    bare = train(lambda scope, i, loss: None, after=False)[2]
    assert all(torch.equal(a, b) for a, b in zip(told.parameters(), bare.parameters(), strict=True))


def test_the_diagnosis_takes_the_loss_that_no_backward_pass_told():
    """Gradients set by hand: nothing but log() knows that the loss became NaN."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    traces = []
    for told in (False, True):
        with gradscope.watch(model, optimizer, every=1, activations=False) as scope:
            for i in range(6):
                for parameter in model.parameters():
                    parameter.grad = torch.ones_like(parameter)
                if told:
                    scope.log(loss=1.0 if i < 4 else math.nan)
                optimizer.step()
        traces.append(scope.trace())
    bare, full = traces
    assert [step.loss for step in bare.steps] == [None] * 6
    assert [step.loss for step in full.steps[:4]] == [1.0] * 4
    assert "non-finite-loss" not in {f.kind for f in gradscope.diagnose(bare).findings}
    since = [f.since for f in gradscope.diagnose(full).findings if f.kind == "non-finite-loss"]
    assert since == [4]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0.5", "of type str"),
        (None, "of type NoneType"),
        (torch.zeros(2), "shape \\(2,\\)"),
        (torch.zeros((), dtype=torch.complex64), "complex64"),
        (torch.zeros((), device="meta"), "shape"),
        (np.zeros(3), "raises TypeError"),
    ],
)
def test_what_is_no_number_is_left_out_with_one_warning(value, reason):
    """However often it comes; what stands beside it is kept."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace, _, _ = train(lambda scope, i, loss: scope.log(bad=value, good=i), after=True)
    assert [w.category for w in caught] == [GradscopeWarning]
    with pytest.raises(GradscopeWarning, match=f"log\\(bad=...\\) was left out: .*{reason}"):
        raise caught[0].message
    assert "bad" not in trace.logged
    assert len(trace.logged["good"]) == 4


def test_names_of_learning_rates_are_the_recorders_own():
    """They would be taken for what the optimizer held."""
    with pytest.warns(GradscopeWarning, match="choose another"):
        trace, _, _ = train(lambda scope, i, loss: scope.log(**{"lr/0": 7.0}), after=True)
    assert {value for _, value in trace.logged["lr/0"]} == {0.1}


def test_a_closed_scope_says_that_it_keeps_nothing():
    """And raises nothing."""
    with gradscope.watch(nn.Linear(1, 1)) as scope:
        pass
    with pytest.warns(GradscopeWarning, match="closed"):
        scope.log(loss=1.0)
    assert scope.trace().logged == {}


def test_memory_is_bounded_and_recorded_steps_stay():
    """Two hundred thousand values: an even choice of them, and every recorded one."""
    logged = Logged(lambda step: step % 5000 == 0)
    n = 200_000
    for step in range(n):
        logged.note(step, {"loss": float(step)})
    points = logged.series()["loss"]
    steps = [step for step, _ in points]
    assert all(step == value for step, value in points)
    assert len(points) <= LIMIT
    assert set(range(0, n, 5000)) <= set(steps)
    others = [step for step in steps if step % 5000]
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert len(others) > LIMIT / 4
    assert max(gaps) <= 2 * n / (LIMIT / 4)
