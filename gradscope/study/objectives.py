"""Logged metrics as outcomes of cells: what the effects are computed of where a grid says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradscope.study.results import CellResult

PREFIX = "logged."
"""Of the columns of logged metrics in the table of cells: ``logged.perplexity``."""

_TAIL = 20
"""The last of so many parts of the values stand for a cell: a single step is chance."""


def outcomes(result: CellResult) -> dict[str, float]:
    """Each logged metric of a cell as one number.

    Args:
        result: of the cell.

    Returns:
        Column -> mean of the last 5 % of the values, at least of the last one; NaN where one of
        these is not finite, and for a cell that diverged.
    """
    found = {}
    for name, values in result.history.logged.items():
        tail = [value for _, value in values[-max(1, len(values) // _TAIL) :]]
        whole = result.status != "diverged" and all(map(math.isfinite, tail)) and tail
        found[PREFIX + name] = sum(tail) / len(tail) if whole else math.nan
    return found


def is_compared_by_decades(column: str, good: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a metric is compared by its logarithm, so that one that ran away outweighs none.

    So are those that are to be small and were never zero or less: losses, errors, perplexities.

    Args:
        column: of the metric in the table of cells.
        good: ``min`` or ``max``.
        rows: of that table.
    """
    known = [float(row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
    return good == "min" and bool(known) and min(known) > 0
