"""watch(on_finding=...): told what changes in the diagnosis, and never in the way."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.diagnosis import Change, changes
from gradscope.errors import GradscopeWarning, RecorderError
from gradscope.recording.ration import Ration


def train(steps=8, *, broken=None, **options):
    """A trace and the weights at the end; before one step the weights become NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=1, **options) as scope:
        for i in range(steps):
            if i == broken:
                with torch.no_grad():
                    model[2].weight.fill_(math.nan)
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
    return scope.trace(), [p.detach().clone() for p in model.parameters()]


@pytest.fixture
def always(monkeypatch):
    """After every recorded step."""
    monkeypatch.setattr(Ration, "due", lambda self: True)


@pytest.mark.usefixtures("always")
def test_a_finding_is_told_once_in_the_step_in_which_it_appears():
    """With the step since when, while the training still runs; the log has the verdict."""
    told, verdicts = [], {}
    steps = []

    def log(numbers, step):
        steps.append(step)
        verdicts[step] = numbers.get("gradscope/total/verdict")

    def notify(change):
        told.append((steps[-1], change))

    trace, _ = train(8, broken=5, log=log, on_finding=notify)
    assert all(isinstance(change, Change) for _, change in told)
    fatal = [(at, c) for at, c in told if c.finding.verdict == "non-finite" and c.what == "appears"]
    assert fatal
    assert {(at, change.since) for at, change in fatal} == {(5, 5)}
    kinds = [(c.what, c.finding.kind) for _, c in fatal]
    assert len(set(kinds)) == len(kinds)
    assert verdicts[0] is None
    assert verdicts[5] != 7.0
    assert verdicts[6] == verdicts[7] == 7.0
    assert {f.kind for f in gradscope.diagnose(trace).findings} >= {kind for _, kind in kinds}


def test_a_short_training_is_told_at_its_end():
    """As the diagnosis of its trace has it."""
    told = []
    trace, _ = train(6, broken=3, on_finding=told.append)
    expected = [f for f in gradscope.diagnose(trace).findings if f.severity != "info"]
    assert expected
    assert [change.finding for change in told] == expected
    assert {change.what for change in told} == {"appears"}


@pytest.mark.usefixtures("always")
def test_the_training_and_its_trace_are_the_same():
    """Bit for bit, learning rates and all."""
    (one, a), (two, b) = train(6), train(6, on_finding=lambda change: None)
    assert all(map(torch.equal, a, b))
    assert torch.equal(one.values.nan_to_num(-1), two.values.nan_to_num(-1))
    assert one.steps == two.steps
    assert one.logged == two.logged
    assert one.structure == two.structure


@pytest.mark.usefixtures("always")
def test_one_that_raises_is_warned_about_once():
    """The recording and the log go on."""
    calls, steps = [], []

    def notify(change):
        calls.append(change)
        raise KeyError("channel")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(6, broken=3, on_finding=notify, log=lambda n, s: steps.append(s))
    assert len(calls) == 1
    assert [w.category for w in caught] == [GradscopeWarning]
    assert "on_finding raised and is called no more: KeyError" in str(caught[0].message)
    assert steps == list(range(7))  # the last is of the verdict


@pytest.mark.usefixtures("always")
def test_a_fault_of_the_diagnosis_ends_the_diagnosis_alone(monkeypatch):
    """One warning; every step is recorded and logged."""

    def fails(trace):
        raise ZeroDivisionError("somewhere")

    monkeypatch.setenv("GRADSCOPE_STRICT", "0")
    monkeypatch.setattr(changes, "diagnose", fails)
    steps = []
    with pytest.warns(GradscopeWarning, match="the diagnosis ended .*ZeroDivisionError") as caught:
        trace, _ = train(6, on_finding=print, log=lambda n, s: steps.append(s))
    assert len(caught) == 1
    assert steps == list(range(6)) == [step.step for step in trace.steps]


def test_what_is_no_function_is_refused():
    """In one line."""
    with pytest.raises(
        RecorderError, match="on_finding must be a function, got str; give one such as print"
    ):
        train(on_finding="slack")
