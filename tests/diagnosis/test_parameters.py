"""Parameters without a gradient, and zeros that the structure makes."""

from handwritten import Net

from gradscope.diagnosis.verdict import Severity


def test_structural_zeros_never_alarm():
    """A bias that batch norm cancels has a gradient of rounding: information."""
    net = Net(8)
    net.put("weight", "l3", "bias", norm=1e-9, weight_norm=1.0)
    net.structure = {"cancelled": {"l3.bias": "n3"}, "frozen": ("l0.weight",)}
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["structural-zero"].where == "l3.bias"
    assert {f.severity for f in findings.values()} == {Severity.INFO}


def test_cut_graph_unused_and_unused_output_are_told_apart():
    """Ran without a gradient: disconnected; never ran: a warning; for an unread output: a note."""
    net = Net(8)
    net.drop("weight", "l2", "weight")
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "disconnected"
    assert findings["disconnected"].where == "l2.weight"
    net.structure = {"aside": ("l2",), "unused": ("gone.weight",)}
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["no-gradient"].where == "l2.weight"
    assert findings["no-gradient"].severity is Severity.INFO
    assert findings["unused"].where == "gone.weight"
    assert findings["unused"].severity is Severity.WARNING
