"""Moves: how far each number of a profile went, and what rounding and chance would do to it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.testing.profile import DRAWN, MEASURES, Profile

FLOOR = 1e-4
"""Decades, or shares of units, by which a number may always move. One unit of a ReLU or of a
max-pool that tips over under rounding moves the numbers of a small network by as much as 3e-5, on
other instructions, thread counts and versions of torch; the noise need not tip that very one."""


WEIGHT_FLOOR = 1e-6
"""The same for what is drawn: no network amplifies the rounding of a generator, about 1e-7."""


FACTOR = 4.0
"""Rounding may do this many times what noise did: twice because two machines may err in opposite
directions, and twice again because one draw of the noise is not the largest."""


FALSE_ALARM = 1e-3
"""Chance that the same network with other random numbers is said to have moved beyond chance."""


POWER = 0.9
"""Share of real changes of the size named in the message that are said to be beyond chance."""


Key = tuple[str, str]
"""Name of a layer, and a measure."""


@dataclass(frozen=True)
class Move:
    """How far one number went, in the seed in which it went furthest."""

    before: float
    after: float

    @property
    def by(self) -> float:
        """Decades, or share of units; infinite where one of them is zero or not finite."""
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        by = self.after - self.before
        return math.inf if math.isnan(by) else by

    def __str__(self) -> str:
        if math.isfinite(self.by):
            return f"{self.by:+.2g}"
        names = {True: "not finite", False: "zero"}
        if not math.isfinite(self.after):
            return names[math.isnan(self.after)]
        return f"was {names[math.isnan(self.before)]}"


def tolerance(key: Key, stored: Profile, now: Profile) -> tuple[float, float]:
    """By how much two means over seeds of one number may differ by chance, and what is seen.

    The spread between seeds is the largest of that seen in this number, that seen on average in
    its measure, and that which the widths predict. Means over n and m seeds differ by more than
    z * spread * sqrt(1/n + 1/m) with a probability of `FALSE_ALARM` over all numbers (Bonferroni).

    Returns:
        That difference, and the real one that exceeds it with probability `POWER`.
    """
    name, measure = key
    spreads = [0.0 if measure in (*DRAWN, "dead") else max(stored.width_std, now.width_std)]
    for profile in (stored, now):
        spreads += [_std(profile.layers[name].numbers[measure]), _mean_std(profile, measure)]
    error = max(spreads) * math.sqrt(1 / stored.seeds + 1 / now.seeds)
    chance = FALSE_ALARM / (2 * sum(len(layer.numbers) for layer in now.layers.values()))
    normal = statistics.NormalDist()
    allowed = floor_of(measure) + normal.inv_cdf(1 - chance) * error
    return allowed, allowed + normal.inv_cdf(POWER) * error


def moves_of(stored: Profile, now: Profile) -> dict[Key, Move]:
    """The largest move of each number that both have, over the seeds that both have.

    Without the draw: what it does shows in the others.
    """
    moves = {}
    for name, layer in now.layers.items():
        before = stored.layers[name].numbers if name in stored.layers else {}
        for measure, values in layer.numbers.items():
            if measure == "draw" or measure not in before:
                continue
            pairs = zip(before[measure], values, strict=False)
            moves[name, measure] = max((Move(*pair) for pair in pairs), key=lambda m: abs(m.by))
    return moves


def rounding(now: Profile, shaken: Profile) -> dict[Key, float]:
    """What rounding may do to each number: what noise did at most to any number of its measure.

    A number that noise makes or keeps from being zero is left out: it is rounding itself.
    """
    moves = {key: abs(move.by) for key, move in moves_of(now, shaken).items()}
    worst = dict.fromkeys(MEASURES, 0.0)
    for (_, measure), by in moves.items():
        if math.isfinite(by) and measure not in DRAWN:
            worst[measure] = max(worst[measure], by)
    return {
        key: max(floor_of(key[1]), FACTOR * worst[key[1]])
        for key, by in moves.items()
        if math.isfinite(by)
    }


def mean_move(key: Key, stored: Profile, now: Profile) -> Move:
    """From the mean over the seeds of one to that of the other."""
    name, measure = key
    means = [statistics.fmean(p.layers[name].numbers[measure]) for p in (stored, now)]
    return Move(*means)


def floor_of(measure: str) -> float:
    """By how much a number of a measure may always move."""
    return WEIGHT_FLOOR if measure in DRAWN else FLOOR


def _std(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.stdev(known) if len(known) > 1 else 0.0


def _mean_std(profile: Profile, measure: str) -> float:
    """Root mean square over the layers."""
    found = [la.numbers[measure] for la in profile.layers.values() if measure in la.numbers]
    return math.sqrt(statistics.fmean(_std(values) ** 2 for values in found)) if found else 0.0
