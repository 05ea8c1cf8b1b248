"""What a diagnosis says: verdict, findings, evidence, and how they read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gradscope import shown

if TYPE_CHECKING:
    from rich.console import RenderableType


class Verdict(StrEnum):
    """What is wrong with a network, if anything."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    EXPLODING = "exploding"
    DEAD = "dead"
    NON_FINITE = "non-finite"
    DISCONNECTED = "disconnected"
    STALLED = "stalled"
    INCONCLUSIVE = "inconclusive"


class Severity(StrEnum):
    """How much a finding matters; only errors make a verdict."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A number with its unit."""

    value: float
    unit: str
    """For example ``decades``, ``decades per block``, ``share``, ``steps``."""

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if self.value else "0"
        told = f"{value} {self.unit}".rstrip()
        if self.unit != "decades" or not abs(self.value) >= 0.05:  # a factor of 1, in words
            return told
        return f"{told} (a {'decay' if self.value < 0 else 'growth'} by {factor_of(self.value)})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    kind: str
    """What: ``vanishing``, ``exploding-forward``, ``dead-units``, ``unused``, ..."""
    severity: Severity
    where: str
    """Which modules, parameters or blocks, by name."""
    message: str
    """What it means, in a sentence."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    remedy: str = ""
    """What would mend this network; empty where nothing needs mending."""
    verdict: Verdict | None = None
    """The verdict it speaks for, None for what leaves the verdict alone."""
    since: int | None = None
    """The recorded step from which on it holds; None where time does not matter."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; non-finite numbers become None."""
        return {
            "kind": self.kind,
            "severity": self.severity.value,
            "where": self.where,
            "since": self.since,
            "message": self.message,
            "evidence": {
                name: {"value": e.value if math.isfinite(e.value) else None, "unit": e.unit}
                for name, e in self.evidence.items()
            },
            "remedy": self.remedy,
        }


_STYLE = {"error": "bold red", "warning": "yellow", "info": "cyan"}

PRIORITY = (
    Verdict.NON_FINITE,
    Verdict.DISCONNECTED,
    Verdict.DEAD,
    Verdict.EXPLODING,
    Verdict.STALLED,
    Verdict.VANISHING,
    Verdict.INCONCLUSIVE,
)
"""Which verdict stands when findings speak for several: what hides the others comes first."""


@dataclass(frozen=True, slots=True)
class RestsOn:
    """What a diagnosis looked at, and what it could not see."""

    steps: int = 0
    """How many recorded steps."""
    first: int = 0
    last: int = 0
    """The first and the last of them."""
    gradients: int = 0
    """Parameters whose gradient was seen."""
    outputs: int = 0
    """Outputs of modules whose gradient was seen."""
    unseen: tuple[str, ...] = ()
    """What could not be seen, one line each."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**dataclasses.asdict(self), "unseen": list(self.unseen)}

    def __str__(self) -> str:
        if not self.steps:
            return "rests on nothing: no step was recorded"
        span = f"step {self.first}" if self.steps == 1 else f"steps {self.first} to {self.last}"
        recorded = f"{self.steps} recorded, " if self.steps > 1 else ""
        seen = f"gradients of {self.gradients} parameters and at {self.outputs} outputs"
        unseen = f"; not seen: {'; '.join(self.unseen)}" if self.unseen else ""
        return f"rests on {span} ({recorded}{seen}){unseen}"


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a network with everything that was found.

    Example:
        >>> diagnosis = gradscope.diagnose(trace)  # doctest: +SKIP
        >>> diagnosis.verdict == "vanishing"  # doctest: +SKIP
        True
    """

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    """Worst first."""
    rests_on: RestsOn = RestsOn()
    """What was looked at."""

    @property
    def is_healthy(self) -> bool:
        """True for the verdict ``healthy``."""
        return self.verdict is Verdict.HEALTHY

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "verdict": self.verdict.value,
            "findings": [finding.to_dict() for finding in self.findings],
            "rests_on": self.rests_on.to_dict(),
        }

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict.value}", str(self.rests_on)]
        for finding in self.findings:
            since = "" if finding.since is None else f", since step {finding.since}"
            lines.append(f"[{finding.severity.value}] {finding.kind}: {finding.where}{since}")
            lines.append(f"    {finding.message}")
            if finding.evidence:
                numbers = (f"{name} {e}" for name, e in finding.evidence.items())
                lines.append(f"    {'; '.join(numbers)}")
            if finding.remedy:
                lines.append(f"    remedy: {finding.remedy}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ground = {Verdict.HEALTHY: shown.WELL, Verdict.INCONCLUSIVE: shown.UNSURE}
        rows = [
            (
                f"{finding.kind} ({finding.severity.value})",
                finding.where,
                "" if finding.since is None else str(finding.since),
                "; ".join(f"{name} {e}" for name, e in finding.evidence.items()),
                f"{finding.message} {finding.remedy}".rstrip(),
            )
            for finding in self.findings
        ]
        titles = ("finding", "where", "since step", "evidence", "meaning and remedy")
        return shown.card(
            "Diagnosis",
            shown.line(str(self.rests_on)),
            shown.table(titles, rows),
            badge=(self.verdict.value, ground.get(self.verdict, shown.SICK)),
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        style = "bold green" if self.is_healthy else "bold red"
        if self.verdict is Verdict.INCONCLUSIVE:
            style = "bold yellow"
        head = Text.assemble("verdict: ", (self.verdict.value, style))
        basis = Text(str(self.rests_on), style="dim")
        table = Table(box=None, padding=(0, 2, 1, 0), show_header=bool(self.findings))
        for title in ("finding", "where", "evidence", "meaning and remedy"):
            table.add_column(title, overflow="fold", vertical="top")
        for finding in self.findings:
            numbers = "\n".join(f"{name} {e}" for name, e in finding.evidence.items())
            if finding.since is not None:
                numbers = f"since step {finding.since}\n{numbers}".rstrip()
            meaning = Text(finding.message)
            if finding.remedy:
                meaning.append(f"\n{finding.remedy}", style="italic")
            kind = Text(finding.kind, style=_STYLE[finding.severity.value])
            table.add_row(kind, Text(finding.where), Text(numbers), meaning)
        return Group(head, basis, table) if self.findings else Group(head, basis)


def factor_of(decades: float) -> str:
    """A change of so many decades in plain words, whatever its direction: ``a factor of 2,000``."""
    size = abs(decades)
    factor = f"{float(f'{10**size:.2g}'):,.4g}" if size < 4 else f"10^{size:.1f}"
    return f"a factor of {factor}"


def decide(findings: Iterable[Finding], rests_on: RestsOn) -> Diagnosis:
    """The verdict that the findings add up to.

    Args:
        findings: in any order.
        rests_on: what was looked at.

    Returns:
        The diagnosis, its findings sorted by severity and by what they speak for.
    """
    rank = {severity: i for i, severity in enumerate(reversed(Severity))}
    speaks = {verdict: i for i, verdict in enumerate(PRIORITY)}
    ordered = sorted(
        findings,
        key=lambda f: (
            rank[f.severity],
            speaks[f.verdict] if f.verdict else len(speaks),
        ),
    )
    spoken = {finding.verdict for finding in ordered}
    verdict = next((v for v in PRIORITY if v in spoken), Verdict.HEALTHY)
    return Diagnosis(verdict, tuple(ordered), rests_on)
