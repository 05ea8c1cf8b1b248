"""What changed between two diagnoses of a run."""

from __future__ import annotations

import pytest

from gradscope.diagnosis import Diagnosis, Finding, Severity, Verdict
from gradscope.diagnosis.changes import changes, number


def finding(kind="dead-units", where="1", severity=Severity.WARNING, *, since=None, verdict=None):
    """One finding of which only these matter."""
    return Finding(kind, severity, where, "told", since=since, verdict=verdict)


def told(before, after, step=90):
    """The changes in short."""
    return [
        (c.what, c.finding.kind, c.finding.where, c.since) for c in changes(before, after, step)
    ]


def test_what_is_new_appears_since_its_own_date_or_the_last_step():
    """One with a date, one without."""
    after = [finding(since=40), finding("unused", "head")]
    assert told([], after) == [
        ("appears", "dead-units", "1", 40),
        ("appears", "unused", "head", 90),
    ]


def test_what_stays_is_told_no_more():
    """Also at another place of its kind alone, with other numbers and another date."""
    assert told([finding(since=40)], [finding(since=50)]) == []
    assert told([finding(where="1, 2")], [finding(where="1, 2, 3")]) == []


def test_a_higher_severity_is_worse_and_a_lower_one_is_not():
    """So is the verdict that a finding speaks for at last."""
    mild = finding()
    grave = finding(severity=Severity.ERROR)
    assert told([mild], [grave]) == [("worsens", "dead-units", "1", 90)]
    assert told([grave], [mild]) == []
    assert told([mild], [finding(verdict=Verdict.DEAD)]) == [("worsens", "dead-units", "1", 90)]


def test_what_is_gone_ends():
    """As it was last, since the step that was looked at."""
    assert told([finding(since=40)], []) == [("ends", "dead-units", "1", 90)]


def test_findings_of_one_kind_are_told_apart_by_their_place():
    """The one at the same place stays whatever the order; of the others one appears."""
    before = [finding(where="2")]
    after = [finding(where="1"), finding(where="2")]
    assert told(before, after) == [("appears", "dead-units", "1", 90)]
    assert told(after, before) == [("ends", "dead-units", "1", 90)]


@pytest.mark.parametrize(
    ("verdict", "value"),
    [("healthy", 0), ("inconclusive", 1), ("vanishing", 2), ("dead", 5), ("non-finite", 7)],
)
def test_the_verdict_as_a_number(verdict, value):
    """What a dashboard is taught must not move."""
    assert number(Diagnosis(Verdict(verdict))) == value
    assert len({number(Diagnosis(each)) for each in Verdict}) == len(Verdict)
