"""Small multiples of lines: one line per variant, with its spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.report.chart import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import (
    Drawing,
    margins,
    merged_names,
    plain,
    short_names,
    shortened,
    titled,
)
from gradscope.report.scheme import Facet
from gradscope.study import labels
from gradscope.study.measures import Floats, evenly
from gradscope.study.reading import Reading
from gradscope.study.tables import Variant

MANY = 96
"""Variants from which a panel draws only some of its lines."""

LINES_OF_MANY = 12


@dataclass(frozen=True)
class Series:
    """What one seed contributes to a line."""

    x: Sequence[float]
    y: Sequence[float]
    text: Sequence[str] = ()
    """Names of the points; equal ones of several networks stand at one place."""
    hover: Sequence[str] = ()
    """The same as they read when hovered, where not the names themselves."""


@dataclass(frozen=True)
class LineChart:
    """What a chart of lines needs beside its numbers."""

    key: str
    title: str
    caption: str
    table: str
    y_title: str
    hover: str
    """plotly's template; ``%{fullData.name}`` is the variant, ``%{text}`` the point's name."""
    x_title: str = "step"
    log: bool = False
    named_x: bool = False
    """Positions along x have names (blocks)."""
    reference: float | None = None
    """Where a horizontal line says "no change"."""
    percent: bool = False


def _stack(series: Sequence[Series]) -> tuple[Series, Floats]:
    """The longest of the series, and all of them padded with NaN, shape (seeds, points)."""
    longest = max(series, key=lambda s: len(s.x))
    values = np.full((len(series), len(longest.x)), np.nan)
    for row, one in zip(values, series, strict=True):
        row[: len(one.y)] = one.y
    return longest, values


def _centre(values: Floats, *, log: bool) -> Floats:
    """Mean over seeds, geometric on a log axis; NaN where no seed has a value."""
    known = np.isfinite(values) & ((values > 0) | (not log))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(known, np.log10(values) if log else values, 0.0)
        mean = logs.sum(axis=0) / known.sum(axis=0)
    return np.asarray(10**mean if log else mean)


def _lines(
    variant: Variant, key: Key, series: Sequence[Series], spec: LineChart
) -> Iterable[dict[str, Any]]:
    """The line of one variant, and the band between its lowest and highest seed."""
    longest, values = _stack(series)
    meta = {"v": variant.index, "c": key.colour, "styled": True}
    colour = PALETTE[key.colour]
    x = np.asarray(longest.x, dtype=np.float32)
    if len(series) > 1:
        with np.errstate(all="ignore"):
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        line = {"width": 0, "color": colour}
        shared = {"type": "scatter", "x": x, "mode": "lines", "line": line, "meta": meta}
        shared["hoverinfo"] = "skip"
        yield shared | {"y": low.astype(np.float32)}
        yield shared | {"y": high.astype(np.float32), "fill": "tonexty"}
    few = len(x) <= 30
    yield {
        "type": "scatter",
        "x": x,
        "y": _centre(values, log=spec.log).astype(np.float32),
        "text": [plain(t) for t in longest.hover or longest.text],
        "name": plain(variant.label),
        "mode": "lines+markers" if few else "lines",
        "line": {"color": colour, "dash": key.dash, "width": 2},
        "marker": {"size": 5, "symbol": key.symbol, "color": colour},
        "hovertemplate": spec.hover,
        "meta": meta,
    }


def line_chart(
    drawing: Drawing,
    spec: LineChart,
    of: Callable[[Reading], Series | None],
    extra: Callable[[Variant], Iterable[dict[str, Any]]] = lambda _: (),
) -> Chart | None:
    """Small multiples of lines over the facets of the scheme, with one shared y axis.

    Args:
        drawing: what is drawn.
        spec: how.
        of: the series of one cell, None where it has none.
        extra: further plotly traces of a variant, drawn over its line.

    Returns:
        The chart; None where no cell has a series.
    """
    drawn: list[tuple[Facet, dict[int, list[Series]]]] = []
    for facet in drawing.scheme.facets:
        found = {
            v.index: [s for s in map(of, drawing.readings(v)) if s is not None and len(s.x)]
            for v in facet.variants
        }
        found = {index: series for index, series in found.items() if series}
        if found:
            drawn.append((facet, found))
    if not drawn:
        return None
    series = [s for _, found in drawn for of_variant in found.values() for s in of_variant]
    limits = _limits(np.concatenate([np.asarray(s.y, dtype=float) for s in series]), spec)
    order = merged_names([s.text for s in series]) if spec.named_x else None
    layout = _layout(spec, series, limits, order)
    panels = []
    for facet, found in drawn:
        data: list[dict[str, Any]] = []
        for variant in (v for v in facet.variants if v.index in found):
            key = drawing.scheme.style(variant)
            own = [_placed(s, order) for s in found[variant.index]]
            further = [_moved(trace, own[0]) for trace in extra(variant)]
            data += [*_lines(variant, key, own, spec), *further]
        words = f"{spec.title}: {spec.y_title} against {spec.x_title}"
        words += f", {labels.count(len(found), 'line')}"
        panels.append(Panel(facet.title, tuple(data), layout, words))
    n_lines = max(len(found) for _, found in drawn)
    many = len(drawing.tables.variants) > MANY and n_lines > LINES_OF_MANY
    notes = []
    if many:
        notes.append(
            f"At most {LINES_OF_MANY} of up to {n_lines} lines are drawn in each panel, evenly "
            "chosen in the order of the grid; filter to see others."
        )
    return Chart(
        spec.key, spec.title, spec.caption, tuple(panels), drawing.scheme.legend, spec.table,
        tuple(notes), wide=len(panels) == 1, lines=LINES_OF_MANY if many else 0,
        options={"scheme": True},
    )  # fmt: skip


def _placed(series: Series, order: Sequence[str] | None) -> Series:
    """The series at the places that all networks share; left as it is where they share none."""
    if order is None:
        return series
    at = {name: i for i, name in enumerate(order)}
    return replace(series, x=[at[name] for name in series.text])


def _moved(trace: dict[str, Any], series: Series) -> dict[str, Any]:
    """Marks that belong to the points of a line, at the places of its points."""
    if not trace.get("meta", {}).get("by_point"):
        return trace
    return trace | {"x": np.asarray(series.x, dtype=np.float32)}


def _limits(values: Floats, spec: LineChart) -> list[float]:
    """The range of y over all panels, in plotly's unit: decades on a log axis."""
    if spec.log:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log10(np.where(values > 0, values, np.nan))
    values = values[np.isfinite(values)]
    if not values.size:
        return [-1.0, 1.0]
    low, high = float(values.min()), float(values.max())
    if spec.reference is not None:
        at = math.log10(spec.reference) if spec.log else spec.reference
        low, high = min(low, at), max(high, at)
    span = high - low
    pad = 0.05 * span if span > 1e-6 * max(1.0, abs(high)) else 0.5 if spec.log else 0.1
    return [low - pad, high + pad]


def _layout(
    spec: LineChart, series: Sequence[Series], limits: list[float], order: Sequence[str] | None
) -> dict[str, Any]:
    y_axis: dict[str, Any] = {**titled(spec.y_title, 4), "range": limits}
    if spec.log:
        y_axis |= {"type": "log", "exponentformat": "power", **_ticks(limits)}
    if spec.percent:
        y_axis["tickformat"] = ".0%"
    x_axis = _named_axis(order) if spec.named_x else titled(spec.x_title)
    if spec.x_title == "epoch":
        x_axis |= {"tick0": 1, "dtick": max(1, math.ceil(max(len(s.x) for s in series) / 8))}
    return {
        "xaxis": x_axis,
        "yaxis": y_axis,
        "showlegend": False,
        "margin": margins(58, 10, 8, 44),
        "shapes": [] if spec.reference is None else [_line_at(spec.reference)],
    }


def _line_at(y: float) -> dict[str, Any]:
    line = {"width": 1, "color": "#888888"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


_STEPS = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
)
"""What ticks within a decade may stand at, from coarse to fine."""


def _ticks(limits: Sequence[float]) -> dict[str, Any]:
    """Ticks of a log axis: whole decades, at most seven; within two decades three ticks or more."""
    low, high = limits
    if high - low > 2:
        return {"dtick": max(1, math.ceil((high - low) / 7))}
    decades = range(math.floor(low), math.ceil(high) + 1)
    values: list[float] = []
    for steps in _STEPS:
        values = [float(f"{m}e{d}") for d in decades for m in steps]
        values = [v for v in values if low <= math.log10(v) <= high]
        if len(values) >= 3:
            break
    else:
        values = [float(f"{10 ** (low + share * (high - low)):.3g}") for share in (0.1, 0.5, 0.9)]
    values = [values[i] for i in evenly(len(values), 7)]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _named_axis(order: Sequence[str] | None) -> dict[str, Any]:
    """Names on the x axis where all lines share their order; else positions."""
    if order is None:
        return titled("position in execution order")
    shown = short_names(order)
    at = evenly(len(shown), 8)
    ticks = [plain(shortened(shown[i])) for i in at]
    return {
        "tickvals": at,
        "ticktext": ticks,
        "tickangle": -40,
        "range": [-0.5, len(order) - 0.5],
        "automargin": True,
    }
