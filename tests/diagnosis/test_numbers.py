"""Sizes of updates."""

import pytest
from handwritten import Net


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1e-3] * 5, "healthy"),
        ([2.0] * 5, "exploding"),
        ([0.2] * 5, "healthy"),
        ([1e-9] * 5, "stalled"),
        ([5e-6] * 5, "healthy"),
        ([5e-7 * i for i in range(1, 6)], "healthy"),
        ([0.0, 1e-9], "healthy"),
    ],
    ids=["usual", "too-large", "large", "too-small", "small", "warm-up", "too-few-steps"],
)
def test_update_sizes(ratios, verdict):
    """Update/weight against the limits of LARS and of float32."""
    net = Net(6, steps=len(ratios))
    for i in range(6):
        net.put("weight", f"l{i}", "weight", update_ratio=ratios)
    assert net.diagnose()[0].verdict == verdict
