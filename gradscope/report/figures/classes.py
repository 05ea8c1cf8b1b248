"""Figures of what was classified how: accuracy per variant and class, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.report.chart import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import (
    SHARES,
    Drawing,
    cell_title,
    clipped,
    margins,
    plain,
    row_axis,
    row_labels,
    titled,
)
from gradscope.study import labels
from gradscope.study.reading import Reading
from gradscope.study.results import Epoch
from gradscope.study.tables import Variant, class_names


def accuracy(drawing: Drawing) -> Chart | None:
    """Accuracy after the last epoch, training and validation, one row per variant."""
    rows = []
    for variant in drawing.tables.variants:
        last = [
            r.result.history.epochs[-1]
            for r in drawing.readings(variant)
            if r.result.history.epochs
        ]
        if last:
            rows.append((variant, last))
    if not rows:
        return None
    rows.sort(key=lambda row: float(np.mean([e.val_accuracy for e in row[1]])))
    marks = (
        ("train_accuracy", "training", 1, "circle-open"),
        ("val_accuracy", "validation", 0, "square"),
    )
    layout = {
        "xaxis": {**titled("accuracy after the last epoch"), "tickformat": ".0%"},
        "yaxis": row_axis(rows),
        "margin": margins(8, 8, 8, 48),
        "showlegend": False,
    }
    data = tuple(_accuracy_marks(rows, *mark) for mark in marks)
    described = f"Accuracy of {labels.count(len(rows), 'variant')}"
    return Chart(
        key="accuracy",
        title="Accuracy",
        caption=(
            "Share of images classified rightly after the last epoch, one mark per seed. The "
            "distance between the two marks is the generalisation gap."
        ),
        panels=(Panel("", data, layout, described),),
        legend=(Key("validation", 0, "", "square"), Key("training", 1, "", "circle-open")),
        table="epochs",
        wide=True,
        options={"rows": True},
    )


def _accuracy_marks(
    rows: Sequence[tuple[Variant, Sequence[Epoch]]], field: str, name: str, colour: int, symbol: str
) -> dict[str, Any]:
    points = [(i, v, getattr(e, field)) for i, (v, epochs) in enumerate(rows) for e in epochs]
    return {
        "type": "scatter",
        "x": [value for _, _, value in points],
        "y": [row for row, _, _ in points],
        "text": [plain(v.label) for _, v, _ in points],
        "mode": "markers",
        "name": name,
        "marker": {"symbol": symbol, "size": 9, "color": PALETTE[colour]},
        "hovertemplate": "%{text}<br>%{fullData.name}: %{x:.1%}<extra></extra>",
        "meta": {
            **row_labels(rows),
            "rows": [v.index for _, v, _ in points],
            "order": [v.index for v, _ in rows],
            "c": colour,
        },
    }


def class_accuracy(drawing: Drawing) -> Chart | None:
    """Accuracy per class, one row per variant."""
    classes: tuple[str, ...] = ()
    rows = []
    for variant in drawing.tables.variants:
        of_seeds = []
        for reading in drawing.readings(variant):
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
    legible = len(rows) <= 64 and len(classes) <= 12
    heat = {
        "type": "heatmap",
        "z": np.array([r[1] for r in rows], dtype=np.float32),
        "x": [plain(c) for c in classes],
        "y": list(range(len(rows))),
        "text": [plain(v.label) for v, _ in rows],
        "zmin": 0,
        "zmax": 1,
        "colorscale": SHARES,
        "texttemplate": "%{z:.0%}" if legible else "",
        "hovertemplate": "%{text}<br>%{x}: %{z:.1%}<extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0},
        "meta": {**row_labels(rows), "shares": True, "per_row": True},
    }
    layout = {
        "xaxis": {"side": "top", "type": "category"},
        "yaxis": row_axis(rows),
        "margin": margins(8, 8, 60, 8),
    }
    described = f"Heat map of {len(rows)} variants by {len(classes)} classes"
    return Chart(
        key="classes",
        title="Accuracy per class",
        caption=(
            "Share of the validation images of each class that were recognised after the last "
            "epoch" + (", mean over seeds" if drawing.tables.n_seeds > 1 else "") + "; variants "
            "from the lowest mean (top) to the highest."
        ),
        panels=(Panel("", (heat,), layout, described),),
        table="confusion",
        wide=True,
        options={"rows": True},
    )


def confusion(drawing: Drawing) -> Chart | None:
    """Confusion matrix per cell, normalised per true class, counts on hover."""
    panels = []
    seeded = drawing.tables.n_seeds > 1
    for variant, reading in drawing.cells():
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
        most=16,
    )


def _confusion_panel(variant: Variant, reading: Reading, *, seeded: bool) -> Panel:
    counts = np.array(reading.result.history.epochs[-1].confusion)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / totals.clip(1), np.nan)
    names = [plain(clipped(c, 12)) for c in class_names(reading.result)]
    at = list(range(len(names)))
    heat = {
        "type": "heatmap",
        "z": shares.astype(np.float32),
        "x": at,
        "y": at,
        "text": counts.tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": SHARES,
        "showscale": False,
        "texttemplate": "%{z:.0%}" if len(names) <= 6 else "",
        "hovertemplate": "%{y} taken for %{x}: %{text} images, %{z:.1%}<extra></extra>",
        "meta": {"v": variant.index, "shares": True},
    }
    ticks = {"tickvals": at, "ticktext": names} if len(names) <= 30 else {}
    layout = {
        "xaxis": {**titled("predicted"), "tickangle": -40, **ticks},
        "yaxis": {"autorange": "reversed", **ticks},
        "margin": margins(84, 8, 4, 76),
    }
    title = cell_title(variant, reading, seeded=seeded)
    right = counts.trace() / max(counts.sum(), 1)
    words = f"Confusion matrix, {labels.percent(right)} right: {title}"
    return Panel(title, (heat,), layout, words)
