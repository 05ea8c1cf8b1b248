"""What one cell came to: its numbers, how sure they are, and whether it learned at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.study import labels, objectives
from gradscope.study.intervals import interval
from gradscope.study.reading import Reading, first_bad_step
from gradscope.study.results import CellResult, Epoch

NOT_LEARNING = "not learning"
"""Status of a cell that was trained to the end and knows no more than the shares of the classes."""

_CHANCE_LOSS = 0.99
"""Share of the loss of chance from which a loss is not below it: one per cent is what a loss moves
by when a network learns nothing but how frequent each class is."""


def outcome(reading: Reading) -> dict[str, Any]:
    """The numbers that stand for one cell; NaN where it has none.

    ``final_loss`` is the mean training loss of the last epoch, or of the last 5 % of the steps
    where no epoch ended; a diverged cell has none. Accuracies are shares, 0 to 1:
    ``train_accuracy`` as it was trained on, ``fit_accuracy`` of a fixed part of the training images
    in evaluation mode; ``gap`` is that less the validation accuracy. ``val_low`` and ``val_high``
    are the 95 % interval of the validation accuracy over the draw of its images.
    """
    result, flow = reading.result, reading.flow
    epochs = result.history.epochs
    last = epochs[-1] if epochs else None
    measured = flow is not None and len(flow.chi) > 0
    steps = result.history.step_loss
    ended = steps[-max(1, len(steps) // 20) :]
    loss = last.train_loss if last else (sum(ended) / len(ended) if ended else math.nan)
    if result.status == "diverged":
        loss = math.nan
    low, high = interval(last) if last else (math.nan, math.nan)
    return {
        "seed": result.seed,
        "status": standing(result),
        "verdict": reading.verdict,
        "rests_on": basis(reading),
        "slope": flow.slope if flow and measured else math.nan,
        "slope_low": flow.slope_low if flow and measured else math.nan,
        "slope_high": flow.slope_high if flow and measured else math.nan,
        "total_decades": flow.total if flow and measured else math.nan,
        "final_loss": loss,
        "log10_loss": math.log10(loss) if 0 < loss < math.inf else math.nan,
        "train_accuracy": last.train_accuracy if last else math.nan,
        "fit_accuracy": last.fit_accuracy if last else math.nan,
        "val_accuracy": last.val_accuracy if last else math.nan,
        "val_low": low,
        "val_high": high,
        "best_val_accuracy": max((e.val_accuracy for e in epochs), default=math.nan),
        "gap": last.fit_accuracy - last.val_accuracy if last else math.nan,
        "epochs": len(epochs),
        "steps": len(steps),
        "first_bad_step": first_bad_step(steps),
        "n_parameters": reading.n_parameters or result.n_parameters,
        "images_per_s": result.images_per_s or math.nan,
        "duration_s": result.duration_s or math.nan,
        "error": result.error or reading.trace_error,
        **objectives.outcomes(result),
    }


def chance(epoch: Epoch) -> tuple[float, float]:
    """Cross entropy and accuracy of the best guess that sees no image: the classes' own shares.

    Returns:
        The entropy of the classes in nats, and the share of the most frequent one; NaN where the
        validation images were not counted by class.
    """
    totals = np.array([sum(row) for row in epoch.confusion], dtype=float)
    if not totals.sum():
        return math.nan, math.nan
    shares = totals[totals > 0] / totals.sum()
    return float(-(shares * np.log(shares)).sum()), float(shares.max())


def standing(result: CellResult) -> str:
    """The status of a cell, with `NOT_LEARNING` for one that ended where it might have guessed.

    Two things must hold: the loss on training images is not below that of chance, and the interval
    of the validation accuracy holds the accuracy of chance, or lies below it.
    """
    if result.status != "done" or not result.history.epochs:
        return str(result.status)
    last = result.history.epochs[-1]
    loss, accuracy = chance(last)
    reached = last.fit_loss if math.isfinite(last.fit_loss) else last.train_loss
    if reached >= _CHANCE_LOSS * loss and interval(last)[0] <= accuracy:
        return NOT_LEARNING
    return str(result.status)


def basis(reading: Reading) -> str:
    """What the verdict rests on: the finding behind it with its stretch, else the whole depth."""
    if not reading.verdict:
        return ""
    for finding in reading.diagnosis.get("findings", ()):
        if finding["severity"] == "error" or reading.verdict == "inconclusive":
            return " ".join(filter(None, (finding["where"], _total(finding["evidence"]))))
    flow = reading.flow
    if flow is None or not flow.chi:
        return ""
    return f"{flow.blocks[0]} ... {flow.blocks[-1]} {_decades(flow.total)}"


def _total(evidence: Mapping[str, Any]) -> str:
    """Of the evidence of a finding the decades in all, else the first number."""
    told = evidence.get("total") or next(iter(evidence.values()), None)
    if not told or told["value"] is None:
        return ""
    return _decades(told["value"]) if told["unit"] == "decades" else labels.text(told)


def _decades(value: float) -> str:
    return f"{labels.fixed(value, 2)} decades"
