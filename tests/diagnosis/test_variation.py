"""Collapse and units that are alike, from traces written by hand."""

import math

import pytest
from handwritten import Net

from gradscope.trace.structure import LossSide, Summary

STEPS = 24


def over_time(start, end):
    """Falls evenly from one to the other, known in every third step."""
    factor = (end / start) ** (1 / (STEPS - 1))
    return [start * factor**i if i % 3 == 0 else math.nan for i in range(STEPS)]


def said(start, end, *, shape=(32, 16), target=None, before=0.5):
    """Findings on a chain whose output varies less and less."""
    net = Net(4, steps=STEPS)
    for i in range(3):
        net.put("activation", f"l{i}", variation=[before] * STEPS)
    net.put("activation", "l3", shape=shape, variation=over_time(start, end), rms=1.0)
    if target is not None:
        summary = Summary("target", shape, "", 1.0, target, 0.0, 2.0)
        net.structure["loss"] = LossSide(("AddmmBackward0", "MseLossBackward0"), (summary,))
    return net.diagnose()


@pytest.mark.parametrize(("start", "end", "kind"), [
    (0.5, 1e-6, "collapse"),
    (0.5, 1e-3, None),
    (1e-4, 5e-5, None),  # small from the start, as at PyTorch's default initialisation
    (1e-12, 1e-12, "constant-output"),
    (1e-6, 0.5, None),
])  # fmt: skip
def test_outputs_that_are_the_same(start, end, kind):
    """Those that became the same and those that ever were; not those that are merely close."""
    diagnosis, findings = said(start, end)
    assert {"collapse", "constant-output"} & findings.keys() == ({kind} if kind else set())
    assert diagnosis.verdict == ("dead" if kind else "healthy")
    if kind == "collapse":
        assert findings[kind].where == "l3"
        assert 0 < findings[kind].since < STEPS


def test_it_is_named_where_it_is_lost():
    """All outputs from l3 on are the same, those before are not."""
    assert said(1e-12, 1e-12)[1]["constant-output"].where == "l3"


def test_outputs_may_be_as_alike_as_their_targets():
    """Prices of 1 +- 0.001 are all but the same, and so are good predictions."""
    assert "collapse" not in said(0.5, 1e-6, target=1e-3)[1]
    assert "collapse" in said(0.5, 1e-12, target=1e-1)[1]


def test_one_number_may_have_to_be_the_same():
    """The value of a state: a warning, no verdict."""
    diagnosis, findings = said(0.5, 1e-6, shape=(32, 1))
    assert findings["collapse"].severity == "warning"
    assert diagnosis.is_healthy


@pytest.mark.parametrize(("variations", "alike"), [
    ([0.0, 0.0, 0.0, 0.0], "l0.weight, l1.weight, l2.weight"),
    ([0.0, 0.0, 0.9, 0.9], "l0.weight"),
    ([0.0, 0.9, 0.9, 0.9], None),  # what follows tells its units apart
    ([0.9, 0.9, 0.9, 0.0], None),  # a head
    ([0.9, math.nan, math.nan, 0.9], None),  # zeros
])  # fmt: skip
def test_units_that_are_alike(variations, alike):
    """Where the next layer treats them alike as well."""
    net = Net(4)
    for i, value in enumerate(variations):
        net.put("weight", f"l{i}", "weight", variation=value)
    _, findings = net.diagnose()
    assert (findings["units-alike"].where if alike else None) == alike
    assert ("units-alike" in findings) == bool(alike)
