"""Timeline: the last stretch of a run beside the whole, and since when a finding holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.verdict import Finding, Severity

Symptom = Callable[[Case], Iterator[Finding]]
"""Looks for one family of findings in a case."""


class Timeline:
    """A run judged as a whole and on its last stretch.

    What only the last stretch shows is a finding of its own: a network that was well and died is
    not well. When a finding began is found by bisection over stretches of `limits.MIN_STRETCH`
    steps, so that a long run takes a dozen judgements rather than one for each step.
    """

    def __init__(self, case: Case, symptoms: Sequence[Symptom]) -> None:
        self._case = case
        self._symptoms = symptoms
        self._steps = len(case.trace.steps)
        self._judged = cache(self._judge)

    def findings(self) -> list[Finding]:
        """All findings, dated where the run is long enough to tell."""
        whole = self._run(self._case)
        if self._steps < 2 * limits.MIN_STRETCH:
            return whole
        length = max(limits.MIN_STRETCH, int(self._steps * limits.STRETCH_SHARE))
        recent = self._judged(self._steps - length, self._steps)
        worst = {finding.kind: finding for finding in reversed(whole)}
        for finding in recent.values():
            known = worst.get(finding.kind)
            if _matters(finding) and (known is None or _rank(finding) > _rank(known)):
                worst[finding.kind] = finding
        kept = [finding for finding in whole if worst[finding.kind] in whole]
        fresh = [finding for finding in worst.values() if finding not in whole]
        return [self._dated(finding, length) for finding in [*kept, *fresh]]

    def _run(self, case: Case) -> list[Finding]:
        return [finding for symptom in self._symptoms for finding in symptom(case)]

    def _judge(self, start: int, stop: int) -> dict[str, Finding]:
        """Kind -> the worst finding of it in a stretch."""
        found: dict[str, Finding] = {}
        for finding in self._run(self._case.stretch(start, stop)):
            if finding.kind not in found or _rank(finding) > _rank(found[finding.kind]):
                found[finding.kind] = finding
        return found

    def _dated(self, finding: Finding, length: int) -> Finding:
        if not _matters(finding) or finding.since is not None:
            return finding
        start = self._onset(finding, limits.MIN_STRETCH)
        if start is None:
            start = self._onset(finding, length)
        steps = self._case.trace.steps
        return finding if start is None else dataclasses.replace(finding, since=steps[start].step)

    def _onset(self, finding: Finding, length: int) -> int | None:
        """Index of the step from which stretches of a length show it; None: the last does not."""

        def shows(start: int) -> bool:
            found = self._judged(start, start + length).get(finding.kind)
            return found is not None and _rank(found) >= _rank(finding)

        first, last = 0, self._steps - length
        if not shows(last):
            return None
        if shows(first):
            return first
        while last - first > 1:  # it does not show at first, and does at last
            middle = (first + last) // 2
            first, last = (first, middle) if shows(middle) else (middle, last)
        return last


def _matters(finding: Finding) -> bool:
    return finding.severity is not Severity.INFO


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)
