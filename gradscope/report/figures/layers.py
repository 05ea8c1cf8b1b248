"""Figures of what was measured layer by layer beside the gradient flow."""

from __future__ import annotations

import math
from functools import partial

from gradscope.report.chart import Chart
from gradscope.report.figures.common import Drawing
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study.reading import Reading


def _layer_line(
    key: str, title: str, caption: str, y_title: str, *, log: bool = True, table: str = "layers",
    reference: float | None = None,
) -> LineChart:  # fmt: skip
    """A line against the layers, in execution order."""
    digits = ".3g" if log else ".1%"
    return LineChart(
        key, title, caption, table, y_title,
        f"%{{fullData.name}}<br>%{{text}}: %{{y:{digits}}}<extra></extra>",
        x_title="layer", log=log, named_x=True, percent=not log, reference=reference,
    )  # fmt: skip


LAYERS: tuple[tuple[str, str, LineChart], ...] = (
    (
        "layers",
        "update_ratio",
        _layer_line(
            "updates",
            "Update over weight, layer by layer",
            "By how much a step changes each layer's weights, as a share of their norm; median "
            "over the recorded steps. 1e-3 is usual; layers far below the others do not learn.",
            "update / weight",
            reference=1e-3,
        ),
    ),
    (
        "layers",
        "weight_norm",
        _layer_line(
            "weight-norms",
            "Norm of the weights",
            "L2 norm of each layer's weights at the last recorded step.",
            "weight norm",
        ),
    ),
    (
        "outputs",
        "dead",
        _layer_line(
            "dead",
            "Dead units",
            "Share of units that were zero on every example so far, at the last recorded step.",
            "dead",
            log=False,
            table="outputs",
        ),
    ),
    (
        "outputs",
        "zero",
        _layer_line(
            "zero",
            "Zeros behind rectifiers",
            "Share of the outputs of rectifiers that are exactly zero; at the start about half.",
            "zero",
            log=False,
            table="outputs",
        ),
    ),
    (
        "outputs",
        "saturated",
        _layer_line(
            "saturated",
            "Saturated units",
            "Share of outputs within 1 % of the bounds of a bounded activation: there the gradient "
            "hardly passes.",
            "saturated",
            log=False,
            table="outputs",
        ),
    ),
)
"""Table, column, and how it is drawn against the layers."""


_ACTIVATIONS = _layer_line(
    "activations",
    "Size of the outputs",
    "Root mean square of what each block gives out, geometric mean over the recorded steps: it "
    "should keep its order of magnitude from the input (left) to the output (right).",
    "rms",
    table="blocks",
)


def by_layer(drawing: Drawing) -> tuple[Chart, ...]:
    """Updates, weight norms, outputs and their shares, against the layers."""
    charts = [
        line_chart(drawing, spec, partial(_over_layers, table, column))
        for table, column, spec in LAYERS
    ]
    charts.append(line_chart(drawing, _ACTIVATIONS, _over_blocks))
    return tuple(chart for chart in charts if chart is not None)


def _over_blocks(reading: Reading) -> Series | None:
    """The rms of the blocks' outputs; of a network without blocks there is none."""
    flow = reading.flow
    if flow is None or not any(map(math.isfinite, flow.log10_activation)):
        return None
    hover = [
        f"{name} ({reading.types[name]})" if name in reading.types else name for name in flow.blocks
    ]
    return Series(range(len(hover)), [10.0**v for v in flow.log10_activation], flow.blocks, hover)


def _over_layers(table: str, column: str, reading: Reading) -> Series | None:
    """One column against the layers that have it; shares of zero everywhere are not drawn.

    Zeros are drawn of rectifiers alone, which are those that can die.
    """
    measured = reading.measured.get(table, {})
    names = measured.get("layer") or measured.get("output") or ()
    asked = measured.get("dead" if column == "zero" else column, ())
    known = [
        (name, value, kind)
        for name, value, kind, told in zip(
            names, measured.get(column, ()), measured.get("type", ()), asked, strict=True
        )
        if math.isfinite(value) and math.isfinite(told)
    ]
    if not any(value for _, value, _ in known):
        return None
    return Series(
        range(len(known)),
        [value for _, value, _ in known],
        [name for name, _, _ in known],
        [f"{name} ({kind})" if kind else name for name, _, kind in known],
    )
