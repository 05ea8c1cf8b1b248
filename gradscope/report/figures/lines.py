"""Small multiples of lines: one line per variant, with its spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gradscope.report import labels
from gradscope.report.charts import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import Study, clipped, plain, short_names
from gradscope.report.reading import Floats, Reading, evenly
from gradscope.report.scheme import Facet
from gradscope.report.tables import Variant

MANY = 96
"""Variants from which a panel draws only some of its lines."""

LINES_OF_MANY = 12


@dataclass(frozen=True)
class Series:
    """What one seed contributes to a line."""

    x: Sequence[float]
    y: Sequence[float]
    text: Sequence[str] = ()


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
    variant: Variant, key: Key, series: Sequence[Series], hover: str, *, log: bool
) -> Iterable[go.Scatter]:
    """The line of one variant, and the band between its lowest and highest seed."""
    longest, values = _stack(series)
    meta = {"v": variant.index, "c": key.colour}
    colour = PALETTE[key.colour]
    x = np.asarray(longest.x, dtype=np.float32)
    if len(series) > 1:
        with np.errstate(all="ignore"):
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        line = {"width": 0, "color": colour}
        shared = {"x": x, "mode": "lines", "line": line, "hoverinfo": "skip", "meta": meta}
        yield go.Scatter(y=low.astype(np.float32), **shared)
        yield go.Scatter(y=high.astype(np.float32), fill="tonexty", **shared)
    few = len(x) <= 30
    yield go.Scatter(
        x=x,
        y=_centre(values, log=log).astype(np.float32),
        text=[plain(t) for t in longest.text] or None,
        name=plain(variant.label),
        mode="lines+markers" if few else "lines",
        line={"color": colour, "dash": key.dash, "width": 2},
        marker={"size": 5, "symbol": key.symbol, "color": colour},
        hovertemplate=hover,
        meta=meta,
    )


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


def line_chart(
    study: Study, spec: LineChart, of: Callable[[Reading], Series | None]
) -> Chart | None:
    """Small multiples of lines over the facets of the study's scheme, with one shared y axis."""
    drawn: list[tuple[Facet, dict[int, list[Series]]]] = []
    for facet in study.scheme.facets:
        found = {
            v.index: [s for s in map(of, study.readings(v)) if s is not None and len(s.x)]
            for v in facet.variants
        }
        found = {index: series for index, series in found.items() if series}
        if found:
            drawn.append((facet, found))
    if not drawn:
        return None
    every = [np.asarray(s.y, dtype=float) for _, f in drawn for ss in f.values() for s in ss]
    limits = _limits(np.concatenate(every), spec)
    panels = [_line_panel(study, spec, facet, found, limits) for facet, found in drawn]
    n_lines = max(len(found) for _, found in drawn)
    many = len(study.tables.variants) > MANY and n_lines > LINES_OF_MANY
    notes = []
    if many:
        notes.append(
            f"At most {LINES_OF_MANY} of up to {n_lines} lines are drawn in each panel, evenly "
            "chosen in the order of the grid; filter to see others."
        )
    return Chart(
        spec.key, spec.title, spec.caption, tuple(panels), study.scheme.legend, spec.table,
        tuple(notes), wide=len(panels) == 1, lines=LINES_OF_MANY if many else 0,
    )  # fmt: skip


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
    pad = 0.05 * (high - low) or 0.5
    return [low - pad, high + pad]


def _line_panel(
    study: Study, spec: LineChart, facet: Facet, found: dict[int, list[Series]], y: list[float]
) -> Panel:
    figure = go.Figure()
    if spec.reference is not None:
        figure.add_hline(y=spec.reference, line={"width": 1, "color": "#888888"})
    for variant in facet.variants:
        if variant.index in found:
            key = study.scheme.style(variant)
            figure.add_traces(
                list(_lines(variant, key, found[variant.index], spec.hover, log=spec.log))
            )
    figure.update_yaxes(title={"text": spec.y_title, "standoff": 4}, range=y)
    if spec.log:
        figure.update_yaxes(type="log", exponentformat="power", **_ticks(y))
    if spec.percent:
        figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(title={"text": spec.x_title, "standoff": 6})
    if spec.x_title == "epoch":
        figure.update_xaxes(tickformat="d", nticks=6)
    if spec.named_x:
        _name_positions(figure, [s for series in found.values() for s in series])
    figure.update_layout(showlegend=False, margin={"l": 58, "r": 10, "t": 8, "b": 44})
    described = f"{spec.title}: {spec.y_title} against {spec.x_title}"
    return Panel(facet.title, figure, f"{described}, {labels.count(len(found), 'line')}")


def _ticks(limits: Sequence[float]) -> dict[str, Any]:
    """Ticks of a log axis: whole decades, at most seven; within two decades plotly chooses."""
    span = limits[1] - limits[0]
    return {"dtick": max(1, math.ceil(span / 7))} if span > 2 else {"nticks": 6}


def _name_positions(figure: go.Figure, series: Sequence[Series]) -> None:
    """Write names on the x axis where all lines of a panel share them; else leave positions."""
    names = {tuple(s.text) for s in series}
    if len(names) != 1:
        figure.update_xaxes(title="position in execution order")
        return
    shown = short_names(next(iter(names)))
    at = evenly(len(shown), 8)
    figure.update_xaxes(
        tickvals=at, ticktext=[plain(clipped(shown[i])) for i in at], tickangle=-40, title=None
    )
