"""Draws of one network are judged together: by majority, with a count of what fewer get."""

import itertools
from collections import Counter

import pytest

from gradscope.diagnosis.draws import judge_draws, verdict_of
from gradscope.diagnosis.verdict import Diagnosis, Finding, RestsOn, Severity, Verdict


def drawn(*verdicts):
    """Diagnoses by seed, each with one finding that names its seed."""
    return {
        seed: Diagnosis(
            Verdict(verdict),
            (Finding("a-kind", Severity.ERROR, f"seed {seed}", "It is so."),),
            RestsOn(steps=seed + 1),
        )
        for seed, verdict in enumerate(verdicts)
    }


def test_vanishing_in_5_of_40_draws_is_a_finding():
    """The network is well, and the warning counts, names the seed and says what to do."""
    diagnosis = judge_draws(drawn(*["healthy"] * 30, *["vanishing"] * 5, *["healthy"] * 5))
    assert diagnosis.is_healthy
    found = next(f for f in diagnosis.findings if f.kind == "differs-by-draw")
    assert found.severity == "warning"
    assert "vanishing in 5 of 40 draws" in found.message
    assert "seed 30" in found.message
    assert {name: e.value for name, e in found.evidence.items()} == {"healthy": 35, "vanishing": 5}
    assert found.remedy
    assert diagnosis.rests_on.steps == 1


def test_a_majority_makes_the_verdict():
    """What is shown is the first draw that has it."""
    diagnosis = judge_draws(drawn("healthy", "vanishing", "vanishing"))
    assert diagnosis.verdict == "vanishing"
    assert diagnosis.findings[0].where == "seed 1"
    assert diagnosis.rests_on.steps == 2
    assert "healthy in 1 of 3 draws" in diagnosis.findings[1].message


def test_draws_that_agree_say_nothing_more():
    """The diagnosis is that of the first."""
    draws = drawn("dead", "dead", "dead")
    assert judge_draws(draws) is draws[0]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_mixture(size):
    """Sick if and only if more than half are; then with a verdict that none exceeds in number."""
    for names in itertools.product(
        ("healthy", "vanishing", "exploding", "non-finite"), repeat=size
    ):
        counts = Counter(name for name in names if name != "healthy")
        verdict = verdict_of(drawn(*names))
        if counts.total() > size / 2:
            assert counts[verdict.value] == max(counts.values())
        else:
            assert verdict == "healthy"
        assert judge_draws(drawn(*names)).verdict is verdict
