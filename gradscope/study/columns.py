"""The long tables of a study: from the reading of one cell to the columns of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gradscope.study import labels
from gradscope.study.reading import Reading
from gradscope.study.results import CellResult

FINDING = ("kind", "severity", "where", "message", "evidence", "remedy")
"""Columns of the table of findings, beside the cell."""


def _blocks(reading: Reading) -> dict[str, Any]:
    """``chi`` is the factor from the next block back to this one."""
    flow = reading.flow
    if flow is None or not flow.blocks:
        return {}
    return {
        "position": range(len(flow.blocks)),
        "block": flow.blocks,
        "type": [reading.types.get(name, "") for name in flow.blocks],
        "log10_grad": flow.log10_grad,
        "log10_activation": flow.log10_activation,
        "chi": [*flow.chi, math.nan],
        "predicted_chi": [*reading.predicted, math.nan],
    }


def _weights(reading: Reading) -> dict[str, Any]:
    if not reading.weights:
        return {}
    names, values = zip(*reading.weights, strict=True)
    return {"position": range(len(names)), "layer": names, "log10_grad": values}


def _ratio(reading: Reading) -> dict[str, Any]:
    if reading.flow is None or not reading.flow.chi:
        return {}
    return {"step": reading.steps, "first_to_last": reading.flow.first_to_last}


def _heat(reading: Reading) -> dict[str, Any]:
    heat = reading.heat
    n_layers = len(heat.layers)
    return {
        "step": np.repeat(np.array(heat.steps, dtype=int), n_layers),
        "position": np.tile(np.arange(n_layers), len(heat.steps)),
        "layer": np.tile(np.array(heat.layers, dtype=object), len(heat.steps)),
        "log10_grad": heat.log10.ravel(),
    }


def _loss(reading: Reading) -> dict[str, Any]:
    curve = reading.curve
    return {"step": curve.step, "loss": curve.raw, "smoothed": curve.smooth}


def _epochs(reading: Reading) -> dict[str, Any]:
    epochs = reading.result.history.epochs
    names = ("epoch", "step", "train_loss", "val_loss", "train_accuracy", "val_accuracy")
    columns: dict[str, Any] = {name: [getattr(e, name) for e in epochs] for name in names}
    columns["fit_loss"] = [e.fit_loss for e in epochs]
    columns["fit_accuracy"] = [e.fit_accuracy for e in epochs]
    columns["gap"] = [e.fit_accuracy - e.val_accuracy for e in epochs]
    columns["duration_s"] = [e.duration_s for e in epochs]
    return columns


def _confusion(reading: Reading) -> dict[str, Any]:
    """After the last epoch; ``share`` is of the images of the true class."""
    epochs = reading.result.history.epochs
    if not epochs or not epochs[-1].confusion:
        return {}
    counts = np.array(epochs[-1].confusion)
    classes = class_names(reading.result)
    totals = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    n = len(classes)
    return {
        "true": [c for c in classes for _ in range(n)],
        "predicted": list(classes) * n,
        "count": counts.ravel(),
        "share": shares.ravel(),
    }


def class_names(result: CellResult) -> tuple[str, ...]:
    """The classes of a cell; numbered where they have no names."""
    epochs = result.history.epochs
    n = len(epochs[-1].confusion) if epochs else len(result.classes)
    return result.classes if len(result.classes) == n else tuple(f"class {i}" for i in range(n))


def _findings(reading: Reading) -> dict[str, Any]:
    findings = reading.diagnosis.get("findings", [])
    if not findings:
        return {}
    return {name: [labels.text(f.get(name, "")) for f in findings] for name in FINDING}


def _measured(name: str, reading: Reading) -> dict[str, Any]:
    return reading.measured.get(name, {})


TABLES: dict[str, Callable[[Reading], dict[str, Any]]] = {
    "blocks": _blocks,
    "weights": _weights,
    "ratio": _ratio,
    "heat": _heat,
    "loss": _loss,
    "epochs": _epochs,
    "confusion": _confusion,
    "findings": _findings,
    **{
        name: partial(_measured, name)
        for name in ("layers", "outputs", "course", "histogram", "logged")
    },
}
"""Name of a table -> the columns that one cell gives it; empty where it has none."""
