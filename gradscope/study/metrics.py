"""The outcomes that the factors of a study are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradscope.study.effect import Effect
from gradscope.study.objectives import PREFIX, is_compared_by_decades
from gradscope.study.tables import Tables


@dataclass(frozen=True)
class Metric:
    """One outcome that the factors are compared on."""

    key: str
    title: str
    unit: str
    of: Callable[[Mapping[str, Any]], float]
    """From a row of the table of cells."""
    good: int
    """+1 where more is better, -1 where less is, 0 where neither."""


METRICS = (
    Metric("drift", "Gradient decay or growth", "decades per block", lambda c: abs(c["slope"]), -1),
    Metric("slope", "Gradient slope, signed", "decades per block", lambda c: c["slope"], 0),
    Metric("loss", "Final training loss, log10", "decades", lambda c: c["log10_loss"], -1),
    Metric("accuracy", "Validation accuracy", "points", lambda c: 100 * c["val_accuracy"], +1),
)


def metrics_of(tables: Tables) -> tuple[Metric, ...]:
    """What a study is compared on: the gradients, and its objectives, or loss and accuracy."""
    wanted = tables.study.objectives
    if not wanted:
        return METRICS
    rows = tables.cell_rows
    found = [m for m in METRICS if m.key in ("drift", "slope")]
    for name, good in wanted.items():
        column = PREFIX + name
        decades = is_compared_by_decades(column, good, rows)
        found.append(_objective(column, decades=decades, good=1 if good == "max" else -1))
    return tuple(found)


def metrics_in(found: Iterable[Effect]) -> tuple[Metric, ...]:
    """The metrics of some effects, in the order in which they come."""
    known = {m.key: m for m in METRICS}
    keys = dict.fromkeys(effect.metric for effect in found)
    return tuple(known.get(key) or _objective(key, decades=key.endswith(_LOG)) for key in keys)


_LOG = ", log10"


def _objective(column: str, *, decades: bool, good: int = 0) -> Metric:
    column = column.removesuffix(_LOG)
    title = column.removeprefix(PREFIX)

    def of(row: Mapping[str, Any]) -> float:
        value = float(row.get(column, math.nan))
        return math.log10(value) if decades and value > 0 else value

    if decades:
        return Metric(column + _LOG, title + _LOG, "decades", of, good)
    return Metric(column, title, "", of, good)
