"""What stopping doomed cells early saved, and what it may have cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from gradscope.study import objectives
from gradscope.study.results import CellResult, Study

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Doomed:
    """Stopped cells, and the audited ones that ran to their end in their stead."""

    stopped: int
    saved_s: float
    """Seconds that the stopped cells would have taken longer, at the rate they had."""
    audited: int
    """Doomed cells that ran to their end and have an outcome."""
    good: int
    """Of these, how many are among the better half of all cells that ran to their end."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of good ones among the doomed (Clopper & Pearson 1934)."""
        if not self.audited:
            return 0.0, 1.0
        found = stats.binomtest(self.good, self.audited).proportion_ci(CONFIDENCE, "exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        cells = "1 doomed cell was" if self.stopped == 1 else f"{self.stopped} doomed cells were"
        saved = f"{cells} stopped early, which saved {self.saved_s / 3600:.2g} hours"
        if not self.audited:
            return f"{saved}; none was audited, so nobody knows what that cost"
        low, high = (f"{100 * share:.0f}" for share in self.interval)
        return (
            f"{saved}; of {self.audited} that ran on to be sure, {self.good} ended among the "
            f"better half ({low} to {high} % of such cells, 95 % interval)"
        )


def doomed(study: Study) -> Doomed | None:
    """What stopping saved and cost; None where no cell was found to be doomed."""
    known = [r for r in study.results if r.doom]
    if not known:
        return None
    stopped = [r for r in known if r.status == "stopped"]
    saved = sum(r.duration_s * (1 / r.doomed_at - 1) for r in stopped if r.doomed_at > 0)
    audited = [r for r in known if r.status in ("done", "diverged")]
    better = _better_half(study)
    good = sum(r.id in better for r in audited)
    return Doomed(len(stopped), saved, len(audited), good)


def _better_half(study: Study) -> set[str]:
    """Cells that ran to their end and are no worse than the median of these."""
    scored = [(r.id, _score(study, r)) for r in study.results if r.status in ("done", "diverged")]
    values = sorted(score for _, score in scored)
    if not values:
        return set()
    median = _median(values)
    return {name for name, score in scored if score >= median and score > -math.inf}


def _median(values: Sequence[float]) -> float:
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else max(values[middle - 1 : middle + 1])


def _score(study: Study, result: CellResult) -> float:
    """The first objective, else accuracy, else loss; more is better; a diverged cell is worst."""
    outcomes = objectives.outcomes(result)
    for name, good in study.objectives.items():
        value = outcomes.get(objectives.PREFIX + name, math.nan)
        return -math.inf if math.isnan(value) else value if good == "max" else -value
    for name, sign in (("val_accuracy", 1), ("train_loss", -1), ("loss", -1)):
        value = outcomes.get(objectives.PREFIX + name, math.nan)
        if not math.isnan(value):
            return sign * value
    return -math.inf
