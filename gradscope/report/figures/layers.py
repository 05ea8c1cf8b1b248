"""Figures of what was measured layer by layer, and over the steps, beside the gradient flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.report.chart import Chart
from gradscope.report.figures.common import Drawing, cell_title, short_names, titled
from gradscope.report.figures.heat import Scale, layer_panel
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study.reading import Reading

MOST_HISTOGRAMS = 64
"""Cells whose histograms are drawn; each takes as much room as a heat map."""


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


def _step_line(key: str, title: str, caption: str, y_title: str, **changed: Any) -> LineChart:
    """A line against the recorded steps."""
    hover = "%{fullData.name}<br>step %{x}: %{y:.3g}<extra></extra>"
    return LineChart(key, title, caption, "course", y_title, hover, **changed)


COURSE: tuple[tuple[str, LineChart], ...] = (
    (
        "grad_norm",
        _step_line(
            "grad-norm",
            "Norm of the whole gradient",
            "L2 norm over all parameters at each recorded step, as the optimizer saw it.",
            "gradient norm",
            log=True,
        ),
    ),
    (
        "update_ratio",
        _step_line(
            "update-steps",
            "Update over weight, step by step",
            "Median over the layers of how much a step changes the weights, as a share of their "
            "norm.",
            "update / weight",
            log=True,
            reference=1e-3,
        ),
    ),
    (
        "clipped_to",
        _step_line(
            "clipping",
            "What clipping left of the gradient",
            "Norm of the gradient after clipping over that before: 1 where nothing was clipped.",
            "share",
            reference=1.0,
        ),
    ),
    (
        "loss_scale",
        _step_line(
            "loss-scale",
            "Loss scale",
            "The factor by which the GradScaler had multiplied the loss.",
            "factor",
            log=True,
        ),
    ),
)
"""Column of the table ``course``, and how it is drawn against the steps."""


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


def by_step(drawing: Drawing) -> tuple[Chart, ...]:
    """Norm of the gradient, updates, clipping and loss scale, against the recorded steps."""
    charts = (line_chart(drawing, spec, partial(_over_steps, column)) for column, spec in COURSE)
    return tuple(chart for chart in charts if chart is not None)


def _over_steps(column: str, reading: Reading) -> Series | None:
    """One column against the steps; a constant one says nothing where it is the neutral factor."""
    course = reading.measured.get("course", {})
    values = course.get(column, ())
    known = [v for v in values if math.isfinite(v)]
    neutral = column in ("clipped_to", "loss_scale") and all(abs(v - 1) < 1e-3 for v in known)
    if len(known) < 2 or neutral:
        return None
    return Series(course["step"], values)


def logged(drawing: Drawing) -> tuple[Chart, ...]:
    """What the user logged and the learning rates, one chart for each name."""
    names = dict.fromkeys(
        name
        for r in drawing.tables.readings
        for name in r.measured.get("logged", {}).get("name", ())
    )
    charts = []
    for i, name in enumerate(names):
        values = [v for r in drawing.tables.readings for v in _of_name(r, name)[1]]
        known = [v for v in values if math.isfinite(v)]
        rate = name.startswith("lr/")
        if rate and len(set(known)) < 2:
            continue  # a constant rate is a setting, not a curve
        title = f"Learning rate of parameter group {name[3:]}" if rate else f"Logged: {name}"
        spec = _step_line(
            f"logged-{i}",
            title,
            "As the optimizer held it at each recorded step." if rate else "As it was logged.",
            name,
            log=bool(known) and min(known) > 0 and max(known) > 20 * float(np.median(known)),
        )
        spec = replace(spec, table="logged")
        chart = line_chart(drawing, spec, partial(_logged_series, name))
        if chart is not None:
            charts.append(chart)
    return tuple(charts)


def _of_name(reading: Reading, name: str) -> tuple[list[int], list[float]]:
    told = reading.measured.get("logged", {})
    rows = [i for i, n in enumerate(told.get("name", ())) if n == name]
    return [told["step"][i] for i in rows], [told["value"][i] for i in rows]


def _logged_series(name: str, reading: Reading) -> Series | None:
    steps, values = _of_name(reading, name)
    return Series(steps, values) if any(map(math.isfinite, values)) else None


def histograms(drawing: Drawing) -> Chart | None:
    """Histogram of log2|gradient| of each layer's weights, one panel per cell."""
    told = [(v, r) for v, r in drawing.cells() if r.measured.get("histogram")]
    if not told:
        return None
    scale = Scale("sequential", 0.0, 0.3, ("0 %", "30 % of the layer's weights"))
    panels = [
        layer_panel(
            cell_title(drawing, variant, reading),
            variant,
            shares,
            bins,
            names=(names, short_names(names)),
            scale=scale,
            hover="%{text}<br>|g| from 2^%{x}: %{z:.1%}<extra></extra>",
            x_axis={**titled("log2 |gradient|"), "nticks": 6},
        )
        for variant, reading in told[:MOST_HISTOGRAMS]
        for names, bins, shares in [_shares(reading.measured["histogram"])]
    ]
    notes = (f"The first {MOST_HISTOGRAMS} of {len(told)} cells.",)
    return Chart(
        key="histogram",
        title="Histograms of the gradients",
        caption=(
            "How the sizes of the gradients of each layer's weights are spread, over all recorded "
            "steps, in bins of a factor of two; zeros are left out."
        ),
        panels=tuple(panels),
        table="histogram",
        notes=notes if len(told) > MOST_HISTOGRAMS else (),
        wide=len(panels) == 1,
        options={"scale": scale.option},
    )


def _shares(told: dict[str, Sequence[Any]]) -> tuple[list[str], Any, Any]:
    """Layers, lower ends of the bins, and the share of each layer's counts in each bin."""
    names = list(dict.fromkeys(told["layer"]))
    bins = np.unique(np.asarray(told["log2"], dtype=np.float32))
    counts = np.asarray(told["count"], dtype=float).reshape(len(names), len(bins))
    totals = counts.sum(axis=1, keepdims=True)
    return names, bins, np.where(counts > 0, counts / totals.clip(1), np.nan)
