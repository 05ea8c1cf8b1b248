"""Figures of the gradient flow: against depth, as chi, over the steps, layer by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.diagnosis import limits
from gradscope.report.chart import PALETTE, Chart, Key
from gradscope.report.figures.common import (
    Drawing,
    cell_title,
    plain,
    power_of_ten,
    short_names,
    titled,
)
from gradscope.report.figures.heat import Scale, layer_panel, row_heat
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study import labels
from gradscope.study.measures import Floats, evenly
from gradscope.study.reading import Reading
from gradscope.study.tables import Variant

DEPTH_BINS = 48
"""Columns of the map of gradients over relative depth."""


def gradient_profile(drawing: Drawing) -> Chart | None:
    """Norm of the gradient against depth."""

    def of_blocks(reading: Reading) -> Series | None:
        flow = reading.flow
        if flow is None or not flow.blocks:
            return None
        hover = [_typed(reading, name) for name in flow.blocks]
        return Series(range(len(hover)), _pow10(flow.log10_grad), flow.blocks, hover)

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
        if flow is None:
            return None
        names = flow.blocks[1:]
        return Series(range(len(names)), flow.chi, names, [_typed(reading, n) for n in names])

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
        legend=(*chart.legend, Key("predicted", -1, "", "circle-open", {"k": "predicted"})),
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
                "meta": {"v": variant.index, "c": key.colour, "by_point": True, "k": "predicted"},
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
            rows.append((variant, np.asarray(np.mean(known, axis=0))))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: (round(row[1][0], 1), row[0].index))
    values = np.array([row[1] for row in rows])
    span = float(math.ceil(max(limits.VANISHING, float(np.nanquantile(np.abs(values), 0.98)))))
    chart = Chart(
        key="map",
        title="Every variant at a glance",
        caption=(
            "Decades by which the gradient norm differs from that at the last block before the "
            "head, along the relative depth; one row per variant, from the most vanishing (top) to "
            f"the most exploding (bottom). The head is left out: its step from {_head(drawing)} "
            "has a size of its own. Colours are full from "
            f"{labels.number(span)} decades on; {limits.VANISHING:.0f} make a decay matter."
        ),
        panels=(),
        table="blocks",
    )
    return row_heat(
        chart,
        rows,
        np.linspace(0, 1, DEPTH_BINS, dtype=np.float32),
        Scale("diverging", -span, span, (f"{labels.MINUS}{span:.0f} decades", f"+{span:.0f}")),
        hover="%{text}<br>depth %{x:.0%}: %{z:+.2f} decades<extra></extra>",
        x_axis={**titled("relative depth, from the input on"), "tickformat": ".0%"},
    )


def _head(drawing: Drawing) -> str:
    """The blocks that no row of the map shows, by name."""
    heads = [r.flow.blocks[r.body :] for r in drawing.tables.readings if r.flow is not None]
    names = dict.fromkeys(name for head in heads for name in head)
    return labels.listed(names, 4) or "the output"


def _relative(reading: Reading) -> Floats | None:
    """log10 of the gradient over that at the end of the body, at evenly spaced relative depths."""
    flow = reading.flow
    if flow is None or len(flow.blocks) < 2:
        return None
    values = np.asarray(flow.log10_grad)[: reading.body]
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
    low, high = np.quantile(every, [0.01, 0.99])
    ends = (math.floor(low), math.ceil(high))
    scale = Scale("sequential", *ends, (power_of_ten(ends[0]), power_of_ten(ends[1])))
    panels = [
        layer_panel(
            cell_title(drawing, variant, reading),
            variant,
            reading.heat.log10.T,
            np.asarray(reading.heat.steps, dtype=np.float32),
            names=(
                [_typed(reading, n) for n in reading.heat.layers],
                short_names(reading.heat.layers),
            ),
            scale=scale,
            hover="%{text}<br>step %{x}: %{customdata:.2e}<extra></extra>",
            x_axis={**titled("step"), "nticks": 5},
        )
        for variant, reading in readings
    ]
    notes = []
    if any(r.heat.thinned for _, r in readings):
        kept = drawing.tables.limits
        notes.append(
            f"Thinned evenly to at most {kept.steps} of the recorded steps and {kept.layers} "
            "layers per cell."
        )
    scales = " One colour scale for all cells." if len(panels) > 1 else ""
    return Chart(
        key="heat",
        title="Layer by step",
        caption=(
            f"Norm of the {readings[0][1].heat.quantity}, for each layer in execution order (input "
            f"at the top) at each recorded step.{scales} A gap is a gradient of zero, NaN or none."
        ),
        panels=tuple(panels),
        table="heat",
        notes=tuple(notes),
        wide=len(panels) == 1,
        most=32,
        options={"scale": scale.option},
    )


def _typed(reading: Reading, name: str) -> str:
    """A layer with its class, where that is known."""
    kind = reading.types.get(name.partition("[")[0], "")
    return f"{name} ({kind})" if kind else name
