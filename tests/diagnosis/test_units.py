"""Dead and saturated units."""

import pytest
from handwritten import Net

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
