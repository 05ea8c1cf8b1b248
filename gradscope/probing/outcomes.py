"""Outcome and Remedies: what each change made of a network, the best first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradscope import shown
from gradscope.diagnosis.verdict import Verdict

NEAR = 0.5
"""Decades over the whole depth, a factor of three, below which chi is as good as 1: less than what
separates one draw of the weights of a network from the next."""


DECADE = 1.0
"""The same where the interval of the slope contains chi = 1, so that no trend is seen."""


@dataclass(frozen=True)
class Outcome:
    """What the gradient flow is after one change."""

    name: str
    """Short name of the change; ``as it is`` for the network itself."""
    change: str
    """What to do, one sentence."""
    slope: float
    """Decades of log10 chi per block, going backwards; 0 is chi = 1. NaN: not measured."""
    slope_low: float
    slope_high: float
    """Ends of its 95 % interval."""
    accumulated: float
    """Decades that the gradient norm changes over the depth; > 0 grows towards the input."""
    forward: float
    """Decades that the activation rms changes over the depth; > 0 grows towards the output."""
    verdict: Verdict | None = None
    """What `diagnose` says of the changed network; None where it was not tried."""
    reason: str = ""
    """Why the change does not apply to this network; empty where it was tried."""

    @property
    def was_tried(self) -> bool:
        """Whether the network was probed with this change."""
        return not self.reason

    @property
    def chi(self) -> float:
        """Factor on the gradient norm per block, going backwards."""
        return math.pow(10.0, self.slope)

    @property
    def distance(self) -> float:
        """Decades from chi = 1 over the depth; inf where no gradient came through."""
        return abs(self.accumulated) if math.isfinite(self.accumulated) else math.inf

    @property
    def is_settled(self) -> bool:
        """Whether chi is 1 as far as can be told, and nothing else is sick."""
        well = self.verdict in (Verdict.HEALTHY, Verdict.INCONCLUSIVE)
        no_trend = self.slope_low <= 0.0 <= self.slope_high
        return well and self.distance < (DECADE if no_trend else NEAR)


@dataclass(frozen=True)
class Remedies:
    """All changes, the best first."""

    baseline: Outcome
    ranked: tuple[Outcome, ...]
    """Those that were tried, by how near to chi = 1 the gradient stays over the depth. Settled
    ones, whose difference from 1 is within the measurement, come first: of them the smallest
    change."""
    not_applicable: tuple[Outcome, ...]

    def _repr_html_(self) -> str:
        rows = [
            (
                each.name,
                f"{each.chi:.3g}",
                f"{each.accumulated:+.2f}",
                f"{each.forward:+.2f}",
                each.verdict.value if each.verdict else "",
                each.change,
            )
            for each in (self.baseline, *self.ranked)
        ]
        best = self.best.name if self.best else "none is needed or helps"
        unfit = shown.some([each.name for each in self.not_applicable])
        titles = ("change", "chi per block", "decades", "forward", "verdict", "what to do")
        return shown.card(
            f"Remedies; the best: {best}",
            shown.table(titles, rows),
            shown.line(f"does not apply: {unfit}" if unfit else ""),
        )

    @property
    def best(self) -> Outcome | None:
        """The first of the ranked, if the network needs one and it is nearer to chi = 1."""
        if self.baseline.is_settled or not self.ranked:
            return None
        first = self.ranked[0]
        return first if first.is_settled or first.distance < self.baseline.distance else None
