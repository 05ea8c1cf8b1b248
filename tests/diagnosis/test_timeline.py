"""What only the last stretch shows is found and dated; what chance explains is not."""

import math

import pytest
import torch
from handwritten import Net, geometric

from gradscope.diagnosis import Severity


def turned(steps, at, before, after):
    """A number per step that changes at one of them."""
    return [before] * at + [after] * (steps - at)


@pytest.mark.parametrize(("steps", "at"), [(60, 20), (60, 5), (40, 30), (512, 300)])
def test_gradients_that_die_are_found_and_dated(steps, at):
    """Exactly zero from a step on, which is the step that the finding names."""
    net = Net(6, steps=steps)
    for i in range(5):
        net.put("weight", f"l{i}", "weight", norm=turned(steps, at, 1.0, 0.0))
        net.put("activation_grad", f"l{i}", norm=turned(steps, at, 1.0, 0.0))
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "dead"
    assert findings["zero-gradient"].since == at


@pytest.mark.parametrize("at", [20, 41])
def test_a_decay_that_begins_late_is_found(at):
    """Well for `at` steps and vanishing afterwards; the date is right to within a stretch."""
    net = geometric(Net(20, steps=60), 1.0)
    for i in range(20):
        net.put(
            "activation_grad", f"l{i}",
            norm=turned(60, at, 1.0 + 0.01 * (-1) ** i, 0.5 ** (19 - i) * (1 + 0.01 * (-1) ** i)),
        )  # fmt: skip
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "vanishing"
    assert abs(findings["vanishing"].since - at) <= 8


def test_a_graph_that_is_cut_late_is_found():
    """A parameter that got a gradient at each step and gets none from step 20 on."""
    net = Net(6, steps=60)
    trace = net.trace()
    column = next(i for i, t in enumerate(trace.tensors) if t.name == "l2.weight")
    trace.present[20:, column] = False
    trace.values[20:, column] = math.nan
    from gradscope import diagnose

    diagnosis = diagnose(trace)
    assert diagnosis.verdict == "disconnected"
    (finding,) = [f for f in diagnosis.findings if f.kind == "disconnected"]
    assert finding.where == "l2.weight"
    assert finding.since == 20


def test_an_idle_expert_is_no_cut():
    """A gradient in one step of four by chance: nine steps without are no cut (0.75^9 = 8 %)."""
    net = Net(6, steps=40)
    trace = net.trace()
    column = next(i for i, t in enumerate(trace.tensors) if t.name == "l2.weight")
    came = torch.zeros(40, dtype=torch.bool)
    came[[0, 4, 9, 12, 17, 21, 26, 30]] = True
    trace.present[:, column] = came
    trace.values[~came, column] = math.nan
    from gradscope import diagnose

    assert diagnose(trace).verdict == "healthy"


def test_what_holds_from_the_first_step_says_so():
    """A vanishing network is vanishing since the first recorded step."""
    _, findings = geometric(Net(20, steps=60), 0.5).diagnose()
    assert findings["vanishing"].severity is Severity.ERROR
    assert findings["vanishing"].since == 0


def test_short_runs_are_judged_as_a_whole():
    """Fifteen steps are fewer than two stretches: nothing is dated."""
    _, findings = geometric(Net(20, steps=15), 0.5).diagnose()
    assert findings["vanishing"].since is None
