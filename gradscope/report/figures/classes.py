"""Figures of what was classified how: accuracy per variant and class, confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.report.chart import PALETTE, Chart, Key, Panel
from gradscope.report.figures.common import (
    Drawing,
    margins,
    plain,
    row_axis,
    row_labels,
    shortened,
    titled,
)
from gradscope.report.figures.heat import SHARE, row_heat
from gradscope.study import labels
from gradscope.study.columns import class_names
from gradscope.study.intervals import interval
from gradscope.study.reading import Reading
from gradscope.study.results import Epoch
from gradscope.study.tables import Variant

Counts = NDArray[np.int64]


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
    fitted = all(math.isfinite(e.fit_accuracy) for _, last in rows for e in last)
    other = "training images" if fitted else "running, as trained on"
    data = (
        _accuracy_marks(
            rows, "fit_accuracy" if fitted else "train_accuracy", other, 1, "circle-open"
        ),
        _accuracy_marks(rows, "val_accuracy", "validation", 0, "square"),
    )
    layout = {
        "xaxis": {**titled("accuracy after the last epoch"), "tickformat": ".0%"},
        "yaxis": row_axis(rows),
        "margin": margins(8, 8, 8, 48),
        "showlegend": False,
    }
    told = (
        "A fixed part of the training images is judged in evaluation mode, as validation is: the "
        "distance between the two marks is the generalisation gap."
        if fitted
        else "The running accuracy is that of the batches as they were trained on, by weights that "
        "were still changing and in training mode: its distance from validation is no measure of "
        "generalisation."
    )
    return Chart(
        key="accuracy",
        title="Accuracy",
        caption=(
            "Share of images classified rightly after the last epoch, one mark per seed. Bars are "
            f"95 % intervals over the draw of the validation images (Wilson). {told}"
        ),
        panels=(Panel("", data, layout, f"Accuracy of {labels.count(len(rows), 'variant')}"),),
        legend=(
            Key("validation", 0, "", "square", {"k": "validation"}),
            Key(other, 1, "", "circle-open", {"k": other}),
        ),
        table="epochs",
        wide=True,
        options={"rows": True},
    )


def _accuracy_marks(
    rows: Sequence[tuple[Variant, Sequence[Epoch]]], field: str, name: str, colour: int, symbol: str
) -> dict[str, Any]:
    points = [(i, v, e) for i, (v, epochs) in enumerate(rows) for e in epochs]
    marks = {
        "type": "scatter",
        "x": [getattr(e, field) for _, _, e in points],
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
            "k": name,
        },
    }
    ends = [interval(e) for _, _, e in points]
    if field == "val_accuracy" and any(math.isfinite(low) for low, _ in ends):
        marks["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [
                high - e.val_accuracy for (_, high), (_, _, e) in zip(ends, points, strict=True)
            ],
            "arrayminus": [
                e.val_accuracy - low for (low, _), (_, _, e) in zip(ends, points, strict=True)
            ],
            "thickness": 1,
            "width": 3,
            "color": PALETTE[colour],
        }
    return marks


def class_accuracy(drawing: Drawing) -> Chart | None:
    """Accuracy per class, one row per variant."""
    rows = []
    classes: tuple[str, ...] = ()
    for variant in drawing.tables.variants:
        counts, names = _counts(drawing.readings(variant))
        if counts is not None and names in (classes, classes or names):
            classes = names
            totals = counts.sum(axis=1)
            rows.append((variant, np.where(totals > 0, counts.diagonal() / totals.clip(1), np.nan)))
    if not rows:
        return None
    rows.sort(key=lambda row: float(np.nanmean(row[1])))
    legible = len(rows) <= 64 and len(classes) <= 12
    chart = Chart(
        key="classes",
        title="Accuracy per class",
        caption=(
            "Share of the validation images of each class that were recognised after the last "
            "epoch" + (", over all seeds" if drawing.tables.n_seeds > 1 else "") + "; variants "
            "from the lowest mean (top) to the highest."
        ),
        panels=(),
        table="confusion",
    )
    return row_heat(
        chart, rows, [plain(c) for c in classes], SHARE,
        hover="%{text}<br>%{x}: %{z:.1%}<extra></extra>",
        x_axis={"side": "top", "type": "category"},
        numbers="%{z:.0%}" if legible else "",
    )  # fmt: skip


def pooled(drawing: Drawing) -> Chart | None:
    """Confusion matrices over all cells, and over the cells of each level of each factor."""
    tables = drawing.tables
    if len(tables.variants) < 2:
        return None
    groups = [("all cells", list(tables.variants))]
    for f, factor in enumerate(tables.factors):
        for level, name in enumerate(factor.levels):
            own = [v for v in tables.variants if v.levels[f] == level]
            groups.append((f"{factor.name} {name}", own))
    panels = []
    for title, variants in groups:
        counts, names = _counts([r for v in variants for r in drawing.readings(v)])
        if counts is None:
            return None
        panels.append(_matrix(title, counts, names, {"pool": [v.index for v in variants]}))
    return Chart(
        key="pooled",
        title="Confusion matrices, pooled",
        caption=(
            "Counts added up over all cells, and over the cells of each level: rows are true "
            "classes, columns what they were taken for, in shares of the row. A filter takes its "
            "cells out of every sum."
        ),
        panels=tuple(panels),
        table="confusion",
        options={"scale": SHARE.option, "pooled": True},
        most=8,
    )


def confusion(drawing: Drawing) -> Chart | None:
    """Confusion matrix per variant, its seeds added up, normalised per true class."""
    panels = []
    for variant in drawing.tables.variants:
        counts, names = _counts(drawing.readings(variant))
        if counts is not None:
            title = variant.label if len(drawing.tables.variants) > 1 else ""
            panels.append(_matrix(title, counts, names, {"v": variant.index}))
    if not panels:
        return None
    several = len(panels) > 1
    return Chart(
        key="confusion",
        title="Confusion matrices of each variant" if several else "Confusion matrix",
        caption=(
            "After the last epoch, on the validation images"
            + (", added up over seeds" if drawing.tables.n_seeds > 1 else "")
            + ": rows are true classes, columns what they were taken for, in shares of the row. "
            "Hover for the number of images."
        ),
        panels=tuple(panels),
        table="confusion",
        options={"scale": SHARE.option},
        most=4,
    )


def _counts(readings: Sequence[Reading]) -> tuple[Counts | None, tuple[str, ...]]:
    """Confusion counts after the last epoch, added up, and the classes.

    None where there are none, or the cells do not have the same classes.
    """
    found: dict[tuple[str, ...], Counts] = {}
    for reading in readings:
        epochs = reading.result.history.epochs
        if epochs and epochs[-1].confusion:
            names = class_names(reading.result)
            found[names] = found.get(names, 0) + np.array(epochs[-1].confusion)
    if len(found) != 1:
        return None, ()
    names, counts = next(iter(found.items()))
    return counts, names


def _matrix(title: str, counts: Counts, names: tuple[str, ...], meta: dict[str, Any]) -> Panel:
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / totals.clip(1), np.nan)
    at = list(range(len(names)))
    heat = SHARE.trace | {
        "z": shares.astype(np.float32),
        "x": at,
        "y": at,
        "text": counts.tolist(),
        "showscale": False,
        "texttemplate": "%{z:.0%}" if len(names) <= 6 else "",
        "hovertemplate": "%{y} taken for %{x}:<br>%{text} images, %{z:.1%}<extra></extra>",
        "meta": {**meta, "shares": True},
    }
    shown = [plain(shortened(c, 12)) for c in names]
    ticks = {"tickvals": at, "ticktext": shown} if len(names) <= 30 else {}
    layout = {
        "xaxis": {**titled("predicted"), "tickangle": -40, "automargin": True, **ticks},
        "yaxis": {"autorange": "reversed", "automargin": True, **ticks},
        "margin": margins(84, 8, 4, 76),
    }
    right = counts.trace() / max(counts.sum(), 1)
    words = f"Confusion matrix, {labels.percent(right)} right{': ' if title else ''}{title}"
    return Panel(title, (heat,), layout, words)
