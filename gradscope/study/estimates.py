"""The mean of differences with its interval over seeds, and p-values corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gradscope.study.effect import CONFIDENCE

Floats = NDArray[np.float64]


def estimate(pairs: Sequence[Floats]) -> dict[str, Any]:
    """Mean of the pairs' differences, with its interval over seeds.

    Args:
        pairs: for each pair the differences, one per seed, at least one.

    Returns:
        The numeric fields of an `Effect`; interval and p are NaN unless some pair has two seeds. A
        pair with one seed takes the mean variance of the others.
    """
    means = np.array([pair.mean() for pair in pairs])
    found: dict[str, Any] = {
        "estimate": float(means.mean()),
        "n_pairs": len(pairs),
        "n_seeds": min(len(pair) for pair in pairs),
        "smallest": float(means.min()),
        "largest": float(means.max()),
    }
    repeated = [pair for pair in pairs if len(pair) > 1]
    if not repeated:
        return found
    pooled = float(np.mean([pair.var(ddof=1) for pair in repeated]))
    variances = [(pair.var(ddof=1) if len(pair) > 1 else pooled) / len(pair) for pair in pairs]
    variance = float(np.sum(variances)) / len(pairs) ** 2
    of_repeated = [(pair.var(ddof=1) / len(pair), len(pair) - 1) for pair in repeated]
    scatter = sum(v**2 / df for v, df in of_repeated)
    if variance == 0 or scatter == 0:  # the seeds agree to the last bit: nothing to test against
        return found
    freedom = sum(v for v, _ in of_repeated) ** 2 / scatter
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    found["error"], found["freedom"] = error, freedom
    found["low"], found["high"] = found["estimate"] - half, found["estimate"] + half
    found["p"] = float(2 * stats.t.sf(abs(found["estimate"]) / error, freedom))
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step by step (Holm 1979).

    The k-th smallest counts as many times as are left, and no less than the one before. Here, since
    that of statsmodels collects garbage over the whole process at each call.
    """
    corrected = [0.0] * len(p)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected
