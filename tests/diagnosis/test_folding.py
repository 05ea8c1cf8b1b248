"""Causes first: what follows from a cause is not told beside it."""

import pytest

from gradscope.diagnosis.folding import folded
from gradscope.diagnosis.verdict import Evidence, Finding, Severity


def finding(kind, *, since=None, dead=0.8):
    """An error of a kind."""
    evidence = {"dead": Evidence(dead, "share of units")}
    return Finding(kind, Severity.ERROR, "there", "so it is", evidence, since=since)


@pytest.mark.parametrize(("found", "told"), [
    (["target-scale", "updates-too-large", "exploding-forward"], {"target-scale"}),
    (["disconnected", "no-gradients"], {"disconnected"}),
    (["non-finite", "non-finite-loss"], {"non-finite"}),
    (["likelihood-of-logits", "unbounded-loss", "not-learning"], {"likelihood-of-logits"}),
    (["clipped", "dropout-too-large"], {"clipped", "dropout-too-large"}),
])  # fmt: skip
def test_what_follows_is_left_out(found, told):
    """Whatever the order."""
    for order in (found, found[::-1]):
        assert {f.kind for f in folded(finding(kind) for kind in order)} == told


def test_dead_units_make_a_collapse_where_nothing_passes():
    """A layer that is dead in part follows from a collapse; one that is wholly dead makes it."""
    part = folded([finding("collapse"), finding("dead-units", dead=0.8)])
    whole = folded([finding("collapse"), finding("dead-units", dead=1.0)])
    assert [f.kind for f in part] == ["collapse"]
    assert [f.kind for f in whole] == ["dead-units"]
