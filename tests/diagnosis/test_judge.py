"""diagnose() on a trace whose every number is known."""

from handwritten import Net


def test_level_chain_is_healthy():
    """No change over any depth: no finding at all."""
    diagnosis, findings = Net(40).diagnose()
    assert diagnosis.verdict == "healthy"
    assert diagnosis.is_healthy
    assert findings == {}
