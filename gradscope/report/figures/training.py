"""Figures of the training: loss, accuracy, the gap between them, over steps and epochs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from gradscope.report.charts import PALETTE, Chart
from gradscope.report.figures.common import Study, plain
from gradscope.report.figures.lines import LineChart, Series, line_chart
from gradscope.report.reading import Reading
from gradscope.report.tables import Variant


def loss_by_step(study: Study) -> Chart | None:
    """Training loss against the step: smoothed, with the raw one behind it."""

    def smooth(reading: Reading) -> Series:
        return Series(reading.curve.step, reading.curve.smooth)

    several = study.tables.n_seeds > 1
    spec = LineChart(
        key="loss",
        title="Training loss by step",
        caption=(
            "Exponential moving average over 5 % of the steps"
            + (", mean over seeds with its range" if several else ", over the raw loss (faint)")
            + ". A cross marks where the loss became NaN or infinite."
        ),
        table="loss",
        y_title="loss",
        hover="%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
        log=_spans_decades(study),
    )
    chart = line_chart(study, spec, smooth)
    if chart is None:
        return None
    facets = {facet.title: facet for facet in study.scheme.facets}
    for panel in chart.panels:
        for variant in facets[panel.title].variants:
            for reading in study.readings(variant):
                _add_raw(study, panel.figure, variant, reading, raw=not several)
    thinned = any(r.curve.thinned for r in study.tables.readings)
    note = f"Thinned evenly to at most {study.tables.limits.losses} points per cell."
    return replace(chart, notes=(*chart.notes, *([note] if thinned else [])))


def _add_raw(
    study: Study, figure: go.Figure, variant: Variant, reading: Reading, *, raw: bool
) -> None:
    key = study.scheme.style(variant)
    meta = {"v": variant.index, "c": key.colour}
    curve = reading.curve
    if raw and len(curve.step) > 1:
        figure.add_trace(
            go.Scatter(
                x=np.asarray(curve.step, dtype=np.float32),
                y=np.asarray(curve.raw, dtype=np.float32),
                mode="lines",
                opacity=0.25,
                line={"color": PALETTE[key.colour], "width": 1},
                hoverinfo="skip",
                meta=meta,
            )
        )
    if reading.result.status == "diverged" and len(curve.step):
        finite = [i for i, y in enumerate(curve.smooth) if math.isfinite(y)]
        if finite:
            figure.add_trace(
                go.Scatter(
                    x=[curve.step[finite[-1]]],
                    y=[curve.smooth[finite[-1]]],
                    mode="markers",
                    marker={"symbol": "x", "size": 11, "color": PALETTE[key.colour]},
                    name=f"{plain(variant.label)}, diverged",
                    hovertemplate="%{fullData.name} after step %{x}<extra></extra>",
                    meta=meta,
                )
            )


def _spans_decades(study: Study) -> bool:
    """Whether the losses need a log axis."""
    parts = [np.asarray(r.curve.smooth, dtype=float) for r in study.tables.readings]
    every = np.concatenate(parts) if parts else np.empty(0)
    every = every[np.isfinite(every)]
    return bool(every.size and every.min() > 0 and every.max() > 20 * np.median(every))


def loss_by_epoch(study: Study) -> Chart | None:
    """Validation loss against the epoch."""
    return _by_epoch(
        study,
        "val_loss",
        LineChart(
            key="val-loss",
            title="Validation loss by epoch",
            caption="Mean loss over the validation images at the end of each epoch.",
            table="epochs",
            y_title="validation loss",
            x_title="epoch",
            hover="%{fullData.name}<br>epoch %{x}: %{y:.4g}<extra></extra>",
            log=_spans_decades(study),
        ),
    )


def accuracy_by_epoch(study: Study) -> Chart | None:
    """Validation accuracy against the epoch."""
    return _by_epoch(
        study,
        "val_accuracy",
        LineChart(
            key="accuracy-epoch",
            title="Validation accuracy by epoch",
            caption="Share of the validation images classified rightly at the end of each epoch.",
            table="epochs",
            y_title="validation accuracy",
            x_title="epoch",
            hover="%{fullData.name}<br>epoch %{x}: %{y:.1%}<extra></extra>",
            percent=True,
        ),
    )


def gap_by_epoch(study: Study) -> Chart | None:
    """Generalisation gap against the epoch."""
    return _by_epoch(
        study,
        "gap",
        LineChart(
            key="gap",
            title="Generalisation gap by epoch",
            caption=(
                "Training accuracy less validation accuracy: a gap that grows while the validation "
                "accuracy stands still is over-fitting."
            ),
            table="epochs",
            y_title="gap",
            x_title="epoch",
            hover="%{fullData.name}<br>epoch %{x}: %{y:+.1%}<extra></extra>",
            percent=True,
            reference=0.0,
        ),
    )


def _by_epoch(study: Study, name: str, spec: LineChart) -> Chart | None:
    """One line per variant over the epochs; no chart for a single epoch, which a table tells."""

    def of(reading: Reading) -> Series | None:
        epochs = reading.result.history.epochs
        if len(epochs) < 2:
            return None
        if name == "gap":
            values = [e.train_accuracy - e.val_accuracy for e in epochs]
        else:
            values = [getattr(e, name) for e in epochs]
        return Series([e.epoch for e in epochs], values)

    return line_chart(study, spec, of)
