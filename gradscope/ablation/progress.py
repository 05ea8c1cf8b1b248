"""Progress: how far the training of a cell is, as it is told to whoever shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of one cell is."""

    step: int
    """Optimizer steps taken so far."""
    total_steps: int
    """0 where nobody knows."""
    epoch: int = 0
    """From 1; 0 where nobody tells."""
    loss: float = math.nan
    """Of the last step."""
    images_per_s: float = 0.0
    """Training images per second so far, evaluation not counted; 0 where there are none."""
