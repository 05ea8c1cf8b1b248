"""How many seeds would settle an effect that the spread over seeds hides."""

from __future__ import annotations

import math

from scipy import stats

from gradscope.study.effect import CONFIDENCE, Effect

POWER = 0.8
"""Share of studies that shall tell an effect of the estimated size from zero."""

MOST_SEEDS = 1000


def seeds_needed(effect: Effect, tests: int = 1) -> int | None:
    """Seeds per variant with which an effect of this size would be told from zero.

    The power of the t test of the estimate, from the noncentral t distribution. With n seeds for
    today's m the standard error shrinks by sqrt(m / n), and the degrees of freedom grow by
    (n - 1) / (m - 1).

    Args:
        effect: with a standard error over at least two seeds.
        tests: comparisons that p is corrected for; the largest has to pass the strictest limit.

    Returns:
        The number; None where there is no standard error, or more than `MOST_SEEDS` were needed.
    """
    if effect.n_seeds < 2 or not effect.error > 0:
        return None
    found = (n for n in range(2, MOST_SEEDS + 1) if _power(effect, n, tests) >= POWER)
    return next(found, None)


def _power(effect: Effect, seeds: int, tests: int) -> float:
    """Probability of finding the effect with so many seeds."""
    alpha = (1 - CONFIDENCE) / tests
    freedom = effect.freedom * (seeds - 1) / (effect.n_seeds - 1)
    away = abs(effect.estimate) / effect.error * math.sqrt(seeds / effect.n_seeds)
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    return float(stats.nct.sf(limit, freedom, away) + stats.nct.cdf(-limit, freedom, away))
