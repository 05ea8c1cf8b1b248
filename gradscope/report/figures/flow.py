"""Figures of the gradient flow: against depth, as chi, over the steps, layer by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.report.chart import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import (
    SEQUENTIAL,
    Drawing,
    cell_title,
    clipped,
    margins,
    plain,
    row_axis,
    row_labels,
    short_names,
    titled,
)
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study import labels
from gradscope.study.reading import Floats, Reading, evenly
from gradscope.study.tables import Variant

DIVERGING = [[0.0, "#0072B2"], [0.5, "#F4F4F4"], [1.0, "#D55E00"]]
"""Vanishing is blue, exploding is vermilion; the page swaps the middle on a dark ground."""

DEPTH_BINS = 48
"""Columns of the map of gradients over relative depth."""


def gradient_profile(drawing: Drawing) -> Chart | None:
    """Norm of the gradient against depth."""

    def of_blocks(reading: Reading) -> Series | None:
        flow = reading.flow
        if flow is None or not flow.blocks:
            return None
        return Series(range(len(flow.blocks)), _pow10(flow.log10_grad), flow.blocks)

    def of_weights(reading: Reading) -> Series | None:
        names = [name for name, _ in reading.weights]
        return Series(range(len(names)), _pow10([v for _, v in reading.weights]), names)

    spec = LineChart(
        key="profile",
        title="Gradient norm against depth",
        caption=(
            "Norm of the gradient of the loss with respect to each block's output, geometric mean "
            "over the recorded steps, from the input (left) to the output (right). A line that "
            "falls towards the left vanishes on its way back, one that rises explodes."
        ),
        table="blocks",
        y_title="gradient norm",
        x_title="block",
        hover="%{fullData.name}<br>%{text}: %{y:.3g}<extra></extra>",
        log=True,
        named_x=True,
    )
    chart = line_chart(drawing, spec, of_blocks)
    if chart is not None:
        return chart
    by_weight = replace(
        spec,
        table="weights",
        x_title="layer",
        caption=(
            "Norm of the gradient of the loss with respect to each layer's weights, geometric mean "
            "over the recorded steps, in execution order. Outputs were not recorded; in weight "
            "gradients, forward and backward decay can cancel."
        ),
    )
    return line_chart(drawing, by_weight, of_weights)


def _pow10(log10: Sequence[float]) -> list[float]:
    return [10.0**v for v in log10]


def chi_profile(drawing: Drawing) -> Chart | None:
    """Measured chi, with the predicted one where there is one."""

    def measured(reading: Reading) -> Series | None:
        flow = reading.flow
        return Series(range(len(flow.chi)), flow.chi, flow.blocks[1:]) if flow else None

    spec = LineChart(
        key="chi",
        title="Factor per block: chi",
        caption=(
            "chi is the norm of the gradient at a block's input over that at its output: below 1 "
            "the block makes the gradient smaller on its way back, above 1 larger."
        ),
        table="blocks",
        y_title="chi",
        x_title="block",
        hover="%{fullData.name}<br>%{text}: chi = %{y:.3g}<extra></extra>",
        log=True,
        named_x=True,
        reference=1.0,
    )
    chart = line_chart(drawing, spec, measured, partial(_predictions, drawing))
    if chart is None or not any(t["mode"] == "markers" for p in chart.panels for t in p.data):
        return chart
    return replace(
        chart,
        caption=f"{chart.caption} Open circles are what mean-field theory predicts.",
        legend=(*chart.legend, Key("predicted", -1, "", "circle-open")),
    )


def _predictions(drawing: Drawing, variant: Variant) -> Iterable[dict[str, Any]]:
    """Open circles at the predicted chi, the same for all seeds of a variant."""
    key = drawing.scheme.style(variant)
    for reading in drawing.readings(variant)[:1]:
        if any(math.isfinite(v) for v in reading.predicted):
            yield {
                "type": "scatter",
                "x": np.arange(len(reading.predicted), dtype=np.float32),
                "y": np.asarray(reading.predicted, dtype=np.float32),
                "mode": "markers",
                "marker": {"symbol": "circle-open", "size": 9, "color": PALETTE[key.colour]},
                "name": f"{plain(variant.label)}, predicted",
                "hovertemplate": "%{fullData.name}: chi = %{y:.3g}<extra></extra>",
                "meta": {"v": variant.index, "c": key.colour},
            }


def first_to_last(drawing: Drawing) -> Chart | None:
    """First-to-last ratio of the gradient norm over the steps."""

    def of(reading: Reading) -> Series | None:
        flow = reading.flow
        if flow is None or not flow.chi:
            return None
        kept = evenly(len(reading.steps), drawing.tables.limits.losses)
        return Series([reading.steps[i] for i in kept], [flow.first_to_last[i] for i in kept])

    spec = LineChart(
        key="ratio",
        title="First-to-last ratio while training",
        caption=(
            "Norm of the gradient at the first block's output over that at the last one's, at each "
            "recorded step. 1 is a gradient that arrives as it left."
        ),
        table="ratio",
        y_title="first / last",
        hover="%{fullData.name}<br>step %{x}: %{y:.3g}<extra></extra>",
        log=True,
        reference=1.0,
    )
    if all(len(r.steps) < 2 for r in drawing.tables.readings):
        return None
    return line_chart(drawing, spec, of)


def flow_map(drawing: Drawing) -> Chart | None:
    """Gradient over relative depth, one row per variant."""
    rows = []
    for variant in drawing.tables.variants:
        profiles = [_relative(r) for r in drawing.readings(variant)]
        known = [p for p in profiles if p is not None]
        if known:
            rows.append((variant, np.mean(known, axis=0)))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: (round(row[1][0], 1), row[0].index))
    values = np.array([row[1] for row in rows])
    span = max(1.0, float(np.nanquantile(np.abs(values), 0.98)))
    heat = {
        "type": "heatmap",
        "z": values.astype(np.float32),
        "x": np.linspace(0, 1, DEPTH_BINS, dtype=np.float32),
        "y": list(range(len(rows))),
        "text": [plain(variant.label) for variant, _ in rows],
        "zmin": -span,
        "zmax": span,
        "colorscale": DIVERGING,
        "hovertemplate": "%{text}<br>depth %{x:.0%}: %{z:+.2f} decades<extra></extra>",
        "colorbar": {"title": {"text": "decades"}, "thickness": 12, "outlinewidth": 0},
        "meta": {**row_labels(rows), "diverging": True, "per_row": True},
    }
    layout = {
        "xaxis": {**titled("depth: input (0 %) to output (100 %)"), "tickformat": ".0%"},
        "yaxis": row_axis(rows),
        "margin": margins(8, 8, 8, 48),
    }
    described = f"Heat map of {labels.count(len(rows), 'variant')} by depth"
    return Chart(
        key="map",
        title="Every variant at a glance",
        caption=(
            "Decades by which the gradient norm differs from that at the last block, along the "
            "relative depth; one row per variant, from the most vanishing (top) to the most "
            "exploding (bottom)."
        ),
        panels=(Panel("", (heat,), layout, described),),
        table="blocks",
        wide=True,
        options={"rows": True},
    )


def _relative(reading: Reading) -> Floats | None:
    """log10 of the gradient over that at the last block, at evenly spaced relative depths."""
    flow = reading.flow
    if flow is None or len(flow.blocks) < 2:
        return None
    values = np.asarray(flow.log10_grad)
    at = np.linspace(0, 1, len(values))
    return np.asarray(np.interp(np.linspace(0, 1, DEPTH_BINS), at, values - values[-1]))


def layer_heat(drawing: Drawing) -> Chart | None:
    """Layer x step heat map per cell, on one colour scale."""
    readings = [(v, r) for v, r in drawing.cells() if r.heat.log10.size and len(r.heat.steps) > 1]
    if not readings:
        return None
    every = np.concatenate([r.heat.log10.ravel() for _, r in readings])
    every = every[np.isfinite(every)]
    if not every.size:
        return None
    low, high = (float(q) for q in np.quantile(every, [0.01, 0.99]))
    seeded = drawing.tables.n_seeds > 1
    panels = [_heat_panel(v, r, (low, high), seeded=seeded) for v, r in readings]
    notes = []
    if any(r.heat.thinned for _, r in readings):
        limits = drawing.tables.limits
        notes.append(
            f"Thinned evenly to at most {limits.steps} of the recorded steps and {limits.layers} "
            "layers per cell."
        )
    return Chart(
        key="heat",
        title="Layer by step",
        caption=(
            f"Norm of the {readings[0][1].heat.quantity}, for each layer in execution order (input "
            "at the top) at each recorded step. One colour scale for all cells; a gap is a "
            "gradient of zero, NaN or none."
        ),
        panels=tuple(panels),
        table="heat",
        notes=tuple(notes),
        most=32,
        options={"scale": ["sequential", f"1e{low:.1f}", f"1e{high:.1f}"]},
    )


def _heat_panel(
    variant: Variant, reading: Reading, limits: tuple[float, float], *, seeded: bool
) -> Panel:
    heat = reading.heat
    names = short_names(heat.layers)
    at = evenly(len(names), 6)
    trace = {
        "type": "heatmap",
        "z": heat.log10.T.astype(np.float32),
        "x": np.asarray(heat.steps, dtype=np.float32),
        "y": np.arange(len(names), dtype=np.float32),
        "text": [plain(name) for name in heat.layers],
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": SEQUENTIAL,
        "showscale": False,
        "hovertemplate": "%{text}<br>step %{x}: 10^%{z:.2f}<extra></extra>",
        "meta": {"v": variant.index, "per_row": True},
    }
    ticks = [plain(clipped(names[i], 14)) for i in at]
    layout = {
        "xaxis": {**titled("step"), "nticks": 5},
        "yaxis": {"autorange": "reversed", "tickvals": at, "ticktext": ticks},
        "margin": margins(92, 8, 4, 40),
    }
    title = cell_title(variant, reading, seeded=seeded)
    words = f"Heat map of {labels.count(len(names), 'layer')} by step: {title}"
    return Panel(title, (trace,), layout, words)
