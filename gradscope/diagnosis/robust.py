"""A robust centre with its interval, for samples that hold outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Sample size -> 97.5 % quantile of Student's t, for samples too small for a rank interval."""

_PAIRS_LIMIT = 2000
"""Sample size from which evenly spaced order statistics stand for the sample (a wider interval)."""

_EXACT_LIMIT = 60
"""Sample size up to which the signed-rank distribution is counted out rather than approximated."""


def location(sample: Sequence[float]) -> tuple[float, float, float]:
    """Robust centre of a sample with its 95 % interval.

    The median of all pairwise means (Hodges & Lehmann 1963) bears 29 % of outliers; the interval
    inverts Wilcoxon's signed-rank test (Hollander & Wolfe, Nonparametric Statistical Methods,
    section 3.2-3.3) and assumes no distribution but a symmetric one. Factors of successive blocks
    are independent at initialisation, positions along the depth are not, so the centre of the
    factors is estimated rather than a line through the positions. Below six values, where no rank
    interval of 95 % exists, Student's t gives it.

    Args:
        sample: finite numbers.

    Returns:
        Centre, lower end, upper end, in the unit of the sample; NaN, -inf, inf when empty, and an
        infinite interval for a single value.
    """
    n = len(sample)
    if n == 0:
        return math.nan, -math.inf, math.inf
    values = torch.tensor(sample, dtype=torch.float64, device="cpu").sort().values
    values = values[:: -(-n // _PAIRS_LIMIT)]
    n = len(values)
    if n == 1:
        return values.item(), -math.inf, math.inf
    pairs = torch.triu_indices(n, n, device="cpu")
    walsh = ((values[pairs[0]] + values[pairs[1]]) / 2).sort().values
    centre = _median(walsh)
    if n in _T_QUANTILES:
        half = _T_QUANTILES[n] * values.std().item() / math.sqrt(n)
        mean = values.mean().item()
        return centre, min(centre, mean - half), max(centre, mean + half)
    rank = _signed_rank_quantile(n)
    return centre, walsh[rank - 1].item(), walsh[len(walsh) - rank].item()


def _median(ordered: Tensor) -> float:
    middle = len(ordered) // 2
    return ((ordered[middle] + ordered[-middle - 1]) / 2).item()


def _signed_rank_quantile(n: int) -> int:
    """Largest k with P(T < k) <= 2.5 % for Wilcoxon's signed-rank statistic T of n values."""
    if n > _EXACT_LIMIT:
        mean, variance = n * (n + 1) / 4, n * (n + 1) * (2 * n + 1) / 24
        return math.floor(mean - 1.959964 * math.sqrt(variance) + 0.5)  # T is a whole number
    counts = [1]  # how many subsets of {1..m} sum to 0, 1, 2, ...
    for m in range(1, n + 1):
        grown = counts + [0] * m
        for total, count in enumerate(counts):
            grown[total + m] += count
        counts = grown
    allowed, below, k = 0.025 * 2**n, 0, 0
    while below + counts[k] <= allowed:
        below += counts[k]
        k += 1
    return k
