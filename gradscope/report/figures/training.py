"""Figures of the training: loss, accuracy, the gap between them, over steps and epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.report.chart import PALETTE, Chart
from gradscope.report.figures.common import Drawing, plain
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.study.reading import Reading
from gradscope.study.tables import Variant


def loss_by_step(drawing: Drawing) -> Chart | None:
    """Training loss against the step: smoothed, with the raw one behind it."""

    def smooth(reading: Reading) -> Series:
        return Series(reading.curve.step, reading.curve.smooth)

    several = drawing.tables.n_seeds > 1
    broken = any(r.result.status == "diverged" for r in drawing.tables.readings)
    spec = LineChart(
        key="loss",
        title="Training loss by step",
        caption=(
            "Exponential moving average over 5 % of the steps"
            + (", mean over seeds with its range" if several else ", over the raw loss (faint)")
            + (". A cross marks where the loss became NaN or infinite." if broken else ".")
        ),
        table="loss",
        y_title="loss",
        hover="%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
        log=_spans_decades(drawing),
    )
    chart = line_chart(drawing, spec, smooth, partial(_behind_loss, drawing, raw=not several))
    if chart is None or not any(r.curve.thinned for r in drawing.tables.readings):
        return chart
    note = f"Thinned evenly to at most {drawing.tables.limits.losses} points per cell."
    return replace(chart, notes=(*chart.notes, note))


def _behind_loss(drawing: Drawing, variant: Variant, *, raw: bool) -> Iterable[dict[str, Any]]:
    """The raw loss, and a cross where it became non-finite."""
    colour = drawing.scheme.style(variant).colour
    shared = {"type": "scatter", "meta": {"v": variant.index, "c": colour}}
    for reading in drawing.readings(variant):
        curve = reading.curve
        if raw and len(curve.step) > 1:
            yield shared | {
                "x": np.asarray(curve.step, dtype=np.float32),
                "y": np.asarray(curve.raw, dtype=np.float32),
                "mode": "lines",
                "opacity": 0.25,
                "line": {"color": PALETTE[colour], "width": 1},
                "hoverinfo": "skip",
            }
        finite = [i for i, y in enumerate(curve.smooth) if math.isfinite(y)]
        if reading.result.status == "diverged" and finite:
            yield shared | {
                "x": [curve.step[finite[-1]]],
                "y": [curve.smooth[finite[-1]]],
                "mode": "markers",
                "marker": {"symbol": "x", "size": 11, "color": PALETTE[colour]},
                "name": f"{plain(variant.label)}, diverged",
                "hovertemplate": "%{fullData.name} after step %{x}<extra></extra>",
            }


def _spans_decades(drawing: Drawing) -> bool:
    """Whether the losses need a log axis."""
    parts = [np.asarray(r.curve.smooth, dtype=float) for r in drawing.tables.readings]
    every = np.concatenate(parts) if parts else np.empty(0)
    every = every[np.isfinite(every)]
    return bool(every.size and every.min() > 0 and every.max() > 20 * np.median(every))


_EPOCHS: tuple[tuple[str, str, LineChart], ...] = (
    (
        "val_loss",
        "Mean loss over the validation images at the end of each epoch.",
        LineChart(
            key="val-loss",
            title="Validation loss by epoch",
            caption="",
            table="epochs",
            y_title="validation loss",
            hover="%{fullData.name}<br>epoch %{x}: %{y:.4g}<extra></extra>",
        ),
    ),
    (
        "val_accuracy",
        "Share of the validation images classified rightly at the end of each epoch.",
        LineChart(
            key="accuracy-epoch",
            title="Validation accuracy by epoch",
            caption="",
            table="epochs",
            y_title="validation accuracy",
            hover="%{fullData.name}<br>epoch %{x}: %{y:.1%}<extra></extra>",
            percent=True,
        ),
    ),
    (
        "gap",
        (
            "Accuracy on a fixed part of the training images, judged in evaluation mode, less "
            "validation accuracy: a gap that grows while the validation accuracy stands still is "
            "over-fitting."
        ),
        LineChart(
            key="gap",
            title="Generalisation gap by epoch",
            caption="",
            table="epochs",
            y_title="gap",
            hover="%{fullData.name}<br>epoch %{x}: %{y:+.1%}<extra></extra>",
            percent=True,
            reference=0.0,
        ),
    ),
)
"""Column of the table of epochs, caption, and how it is drawn."""


def by_epoch(drawing: Drawing) -> tuple[Chart, ...]:
    """Loss, accuracy and gap against the epoch; none for a single epoch, which a table tells."""
    charts = []
    for name, caption, drawn in _EPOCHS:
        log = name == "val_loss" and _spans_decades(drawing)
        spec = replace(drawn, caption=caption, x_title="epoch", log=log)
        chart = line_chart(drawing, spec, partial(_over_epochs, name))
        if chart is not None:
            charts.append(chart)
    return tuple(charts)


def _over_epochs(name: str, reading: Reading) -> Series | None:
    epochs = reading.result.history.epochs
    values = [
        e.fit_accuracy - e.val_accuracy if name == "gap" else getattr(e, name) for e in epochs
    ]
    if len(epochs) < 2 or not any(map(math.isfinite, values)):
        return None
    return Series([e.epoch for e in epochs], values)
