"""Dead and saturated units."""

import pytest
import torch
from casebook import Trained, clouds, mlp, run
from handwritten import Net
from torch.nn import functional

from gradscope import diagnose
from gradscope.diagnosis.verdict import Severity


def test_dead_layer_needs_more_than_chance():
    """64 units of which 90 % are dead, on the trunk: dead; half of them off is chance."""
    net = Net(6)
    for share, verdict in ((0.5, "healthy"), (0.9, "dead")):
        net.put("activation", "l2", dead_fraction=share)
        diagnosis, findings = net.diagnose()
        assert diagnosis.verdict == verdict
    assert findings["dead-units"].evidence["dead"].value == pytest.approx(0.9)


def test_saturation_is_a_warning():
    """Sixty percent of a tanh's outputs at its bounds."""
    net = Net(6)
    net.put("activation", "l1", saturated_fraction=0.6)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["saturation"].severity is Severity.WARNING


def killed(*, at, until=10**9, steps=120, share=0.9):
    """A training of which most units of a layer are off from one step to another."""
    draw = clouds(0)
    model = mlp(16, 5, hidden=64)
    off = int(64 * share)

    def value(step):
        with torch.no_grad():
            if step in (at, until):
                model[0].bias[:off] = -100.0 if step == at else 0.1
        x, y = draw()
        return functional.cross_entropy(model(x), y)

    return {f.kind: f for f in diagnose(run(Trained(model, value, steps=steps, lr=1e-3))).findings}


def test_units_that_die_late_are_found_and_dated():
    """They lived for forty steps: what is counted is not the whole run."""
    found = killed(at=40)["dead-units"]
    assert (found.severity, found.where) == ("error", "1")
    assert found.evidence["dead"].value == pytest.approx(57 / 64)
    assert 40 - 32 <= found.since <= 40 + 32  # to the windows that units are counted in


def test_units_that_come_back_are_well():
    """Off for forty steps, and active again at the end."""
    assert "dead-units" not in killed(at=40, until=80)
    assert "dead-units" not in killed(at=10**9)
