"""One block or layer that is out of line with the others."""

import pytest
from handwritten import Net


@pytest.mark.parametrize(("factor", "verdict"), [(100.0, "exploding"), (0.01, "vanishing")])
def test_one_block_out_of_line_is_named(factor, verdict):
    """A block that scales both passes by 100, either way; the others are level."""
    net = Net(12)
    for i in range(12):
        net.put("activation", f"l{i}", rms=factor if i >= 7 else 1.0)
        net.put("activation_grad", f"l{i}", norm=factor if i < 7 else 1.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == verdict
    assert findings["odd-block"].where == "l7"
    assert findings["odd-block"].evidence["factor"].value == pytest.approx(factor, rel=0.01)


def test_one_layer_out_of_line_is_named():
    """Before a norm, a weight times 100 divides its gradient by 100: gradient/weight by 10^4."""
    net = Net(12)
    net.put("weight", "l5", "weight", norm=0.01, weight_norm=1000.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "vanishing"
    assert findings["odd-layer"].where == "l5"
    assert findings["odd-layer"].evidence["gradient/weight"].value == pytest.approx(-4.0, abs=0.01)
