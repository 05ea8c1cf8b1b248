"""Effect: one comparison of cells that differ in nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """One comparison on one metric, in the metric's unit."""

    metric: str
    factor: str
    level: str
    reference: str
    """The level it is compared with: the first in the grid."""
    by: str = ""
    """The second factor, for an interaction."""
    by_level: str = ""
    by_reference: str = ""
    estimate: float = math.nan
    low: float = math.nan
    """Lower end of the 95 % interval over seeds; NaN with one seed."""
    high: float = math.nan
    p: float = math.nan
    """Two-sided, that the effect is zero."""
    p_holm: float = math.nan
    """Corrected for all comparisons on this metric (Holm 1979)."""
    n_pairs: int = 0
    """Comparisons that differ in nothing else."""
    n_seeds: int = 0
    """The smallest number of seeds in one of them."""
    smallest: float = math.nan
    """The smallest of the differences over the other factors' levels."""
    largest: float = math.nan
    level_mean: float = math.nan
    """Mean outcome at the level over the pairs; NaN for an interaction."""
    reference_mean: float = math.nan
    error: float = math.nan
    """Standard error of the estimate over seeds."""
    freedom: float = math.nan
    """Its degrees of freedom."""
    carried_by: str = ""
    """The variant without which the estimate turns its sign or loses half its size."""
    without: float = math.nan
    """The estimate without it."""

    @property
    def is_main(self) -> bool:
        """Whether it is a main effect rather than an interaction."""
        return not self.by

    @property
    def is_certain(self) -> bool:
        """Whether it differs from zero after the correction, at 5 %."""
        return self.p_holm < 1 - CONFIDENCE


def to_frame(found: Iterable[Effect]) -> pd.DataFrame:
    """The effects as a table, one row each."""
    return pd.DataFrame([vars(e) for e in found], columns=list(Effect.__dataclass_fields__))
