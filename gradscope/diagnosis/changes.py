"""Follower: what changed from one diagnosis of a run to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import PRIORITY, Diagnosis, Finding, Severity, Verdict
from gradscope.trace.table import Trace


@dataclass(frozen=True, slots=True)
class Change:
    """A finding that appeared, became worse, or ended while a network trained."""

    what: Literal["appears", "worsens", "ends"]
    finding: Finding
    """As it is now; of one that ended, as it was last."""
    since: int
    """The recorded step from which on it holds, or has ended, as far as was looked."""

    def __str__(self) -> str:
        found = self.finding
        return (
            f"[{found.severity.value}] {found.kind} {self.what}: {found.where}, "
            f"since step {self.since}"
        )


class Follower:
    """Diagnoses the same run again and again."""

    def __init__(self) -> None:
        self._known: tuple[Finding, ...] = ()

    def __call__(self, trace: Trace) -> tuple[int, tuple[Change, ...]]:
        """Diagnose a run as far as it is.

        Returns:
            The verdict as a number, 0 for ``healthy`` and the more the earlier it stands in
            `PRIORITY`, and the changes of warnings and errors since the last call.
        """
        diagnosis = diagnose(trace)
        step = trace.steps[-1].step if trace.steps else 0
        found = tuple(f for f in diagnosis.findings if f.severity is not Severity.INFO)
        told = tuple(changes(self._known, found, step))
        self._known = found
        return number(diagnosis), told


def number(diagnosis: Diagnosis) -> int:
    """A verdict for a log that takes numbers: 0 healthy, 1 inconclusive, to 7 non-finite."""
    if diagnosis.verdict is Verdict.HEALTHY:
        return 0
    return len(PRIORITY) - PRIORITY.index(diagnosis.verdict)


def changes(before: Sequence[Finding], after: Sequence[Finding], step: int) -> Iterator[Change]:
    """What appeared, became worse and ended between two diagnoses, in this order by finding.

    A finding is the same when its kind is and its place; one whose place alone differs is the same
    that has moved. It is worse when its severity is higher, or it speaks for a verdict at last.

    Args:
        before: findings of the earlier diagnosis.
        after: findings of the later one.
        step: the last that the later one saw; holds where a finding has no date.
    """
    left = list(before)
    pairs: dict[int, Finding] = {}
    for exact in (True, False):
        for i, finding in enumerate(after):
            known = [
                f
                for f in left
                if f.kind == finding.kind and (f.where == finding.where or not exact)
            ]
            if i not in pairs and known:
                pairs[i] = known[0]
                left.remove(known[0])
    for i, finding in enumerate(after):
        since = step if finding.since is None else finding.since
        if i not in pairs:
            yield Change("appears", finding, since)
        elif _weight(finding) > _weight(pairs[i]):
            yield Change("worsens", finding, step)
    for finding in left:
        yield Change("ends", finding, step)


def _weight(finding: Finding) -> tuple[int, bool]:
    return list(Severity).index(finding.severity), finding.verdict is not None
