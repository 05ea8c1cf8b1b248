"""Figures of what was classified how: accuracy per variant and class, confusion matrices."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from gradscope.report import labels
from gradscope.report.charts import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import (
    SHARES,
    Study,
    cell_title,
    clipped,
    plain,
    row_labels,
)
from gradscope.report.reading import Reading
from gradscope.report.tables import Variant, class_names


def accuracy(study: Study) -> Chart | None:
    """Accuracy after the last epoch, training and validation, one row per variant."""
    rows = []
    for variant in study.tables.variants:
        last = [
            r.result.history.epochs[-1] for r in study.readings(variant) if r.result.history.epochs
        ]
        if last:
            rows.append((variant, last))
    if not rows:
        return None
    rows.sort(key=lambda row: float(np.mean([e.val_accuracy for e in row[1]])))
    shown = [plain(v.label) for v, _ in rows]
    figure = go.Figure()
    for name, colour, symbol in (
        ("train_accuracy", 1, "circle-open"),
        ("val_accuracy", 0, "square"),
    ):
        points = [(i, v.index, getattr(e, name)) for i, (v, es) in enumerate(rows) for e in es]
        figure.add_trace(
            go.Scatter(
                x=[p[2] for p in points],
                y=[p[0] for p in points],
                text=[shown[p[0]] for p in points],
                mode="markers",
                name="validation" if name == "val_accuracy" else "training",
                marker={"symbol": symbol, "size": 9, "color": PALETTE[colour]},
                hovertemplate="%{text}<br>%{fullData.name}: %{x:.1%}<extra></extra>",
                meta={
                    **row_labels(rows),
                    "rows": [p[1] for p in points],
                    "order": [v.index for v, _ in rows],
                    "c": colour,
                },
            )
        )
    figure.update_xaxes(title="accuracy after the last epoch", tickformat=".0%")
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 48}, showlegend=False)
    return Chart(
        key="accuracy",
        title="Accuracy",
        caption=(
            "Share of images classified rightly after the last epoch, one mark per seed. The "
            "distance between the two marks is the generalisation gap."
        ),
        panels=(Panel("", figure, f"Accuracy of {labels.count(len(rows), 'variant')}"),),
        legend=(Key("validation", 0, "", "square"), Key("training", 1, "", "circle-open")),
        table="epochs",
        wide=True,
        options={"rows": True},
    )


def class_accuracy(study: Study) -> Chart | None:
    """Accuracy per class, one row per variant."""
    classes: tuple[str, ...] = ()
    rows = []
    for variant in study.tables.variants:
        of_seeds = []
        for reading in study.readings(variant):
            epochs = reading.result.history.epochs
            if epochs and epochs[-1].confusion:
                counts = np.array(epochs[-1].confusion, dtype=float)
                totals = counts.sum(axis=1)
                of_seeds.append(np.where(totals > 0, counts.diagonal() / totals.clip(1), np.nan))
                classes = classes or class_names(reading.result)
        if of_seeds and len(of_seeds[0]) == len(classes):
            rows.append((variant, np.mean(of_seeds, axis=0)))
    if not rows:
        return None
    rows.sort(key=lambda row: float(np.nanmean(row[1])))
    shown = [plain(v.label) for v, _ in rows]
    values = np.array([r[1] for r in rows])
    figure = go.Figure(
        go.Heatmap(
            z=values.astype(np.float32),
            x=[plain(c) for c in classes],
            y=list(range(len(rows))),
            text=shown,
            zmin=0,
            zmax=1,
            colorscale=SHARES,
            texttemplate="%{z:.0%}" if len(rows) <= 64 and len(classes) <= 12 else None,
            hovertemplate="%{text}<br>%{x}: %{z:.1%}<extra></extra>",
            colorbar={"tickformat": ".0%", "thickness": 12, "outlinewidth": 0},
            meta={**row_labels(rows), "shares": True},
        )
    )
    figure.update_xaxes(side="top", type="category")
    figure.update_layout(margin={"l": 8, "r": 8, "t": 60, "b": 8})
    return Chart(
        key="classes",
        title="Accuracy per class",
        caption=(
            "Share of the validation images of each class that were recognised after the last "
            "epoch" + (", mean over seeds" if study.tables.n_seeds > 1 else "") + "; variants "
            "from the lowest mean (top) to the highest."
        ),
        panels=(Panel("", figure, f"Heat map of {len(rows)} variants by {len(classes)} classes"),),
        table="confusion",
        wide=True,
        options={"rows": True},
    )


def confusion(study: Study) -> Chart | None:
    """Confusion matrix per cell, normalised per true class, counts on hover."""
    panels = []
    seeded = study.tables.n_seeds > 1
    for variant in study.tables.variants:
        for reading in study.readings(variant):
            epochs = reading.result.history.epochs
            if epochs and epochs[-1].confusion:
                panels.append(_confusion_panel(variant, reading, seeded=seeded))
    if not panels:
        return None
    return Chart(
        key="confusion",
        title="Confusion matrices",
        caption=(
            "After the last epoch, on the validation images: rows are true classes, columns what "
            "they were taken for, in shares of the row. Hover for the number of images."
        ),
        panels=tuple(panels),
        table="confusion",
        options={"scale": ["shares", "0 %", "100 %"]},
        most=12,
    )


def _confusion_panel(variant: Variant, reading: Reading, *, seeded: bool) -> Panel:
    counts = np.array(reading.result.history.epochs[-1].confusion)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / totals.clip(1), np.nan)
    names = [plain(clipped(c, 12)) for c in class_names(reading.result)]
    at = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=shares.astype(np.float32),
            x=at,
            y=at,
            text=counts.tolist(),
            zmin=0,
            zmax=1,
            colorscale=SHARES,
            showscale=False,
            texttemplate="%{z:.0%}" if len(names) <= 6 else None,
            hovertemplate="%{y} taken for %{x}: %{text} images, %{z:.1%}<extra></extra>",
            meta={"v": variant.index, "shares": True},
        )
    )
    ticks = {"tickvals": at, "ticktext": names} if len(names) <= 30 else {}
    figure.update_xaxes(title="predicted", tickangle=-40, **ticks)
    figure.update_yaxes(autorange="reversed", **ticks)
    figure.update_layout(margin={"l": 84, "r": 8, "t": 4, "b": 76})
    title = cell_title(variant, reading, seeded=seeded)
    right = counts.trace() / max(counts.sum(), 1)
    return Panel(title, figure, f"Confusion matrix, {labels.percent(right)} right: {title}")
