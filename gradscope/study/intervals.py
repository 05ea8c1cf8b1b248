"""Wilson intervals of shares of images."""

from __future__ import annotations

import math

from gradscope.study.results import Epoch


def share_interval(hits: float, of: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); NaN where nothing was counted.

    Args:
        hits: how many.
        of: of how many.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not of > 0:
        return math.nan, math.nan
    low, high = proportion_confint(hits, of, alpha=0.05, method="wilson")
    return float(low), float(high)


def interval(epoch: Epoch) -> tuple[float, float]:
    """The 95 % interval of a validation accuracy over the draw of the images; NaN if uncounted."""
    n = sum(map(sum, epoch.confusion))
    return share_interval(epoch.val_accuracy * n, n)
