"""Figures over the recorded steps: gradient, updates, clipping, loss scale and what was logged."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.report.chart import Chart
from gradscope.report.figures.common import Drawing
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study.reading import Reading


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
