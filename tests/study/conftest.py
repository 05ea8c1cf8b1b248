"""Studies without traces, from a function of the factors or from tables of a trained one."""

import itertools
from pathlib import Path

import pandas as pd
import pytest

from gradscope.study.results import CellResult, Epoch, History, Study

TRAINED = Path(__file__).parents[1] / "files" / "study_of_32"


def confusion_of(accuracy, n=50, classes=5):
    """A matrix with so many images of each class of which this share lies on the diagonal."""
    right = round(accuracy * n * classes)
    hits = [right // classes + (i < right % classes) for i in range(classes)]
    rows = []
    for i, hit in enumerate(hits):
        row = [0] * classes
        row[i], row[(i + 1) % classes] = hit, n - hit
        rows.append(tuple(row))
    return tuple(rows)


def epoch_of(accuracy=0.5, loss=1.0, **changed):
    """One epoch with a confusion matrix of this accuracy."""
    given = {"train_accuracy": 0.5, "val_loss": loss, "duration_s": 1.0, **changed}
    given.setdefault("confusion", confusion_of(accuracy))
    return Epoch(epoch=1, step=10, train_loss=loss, val_accuracy=accuracy, **given)


FACTORS = {"a": (0, 1), "b": ("x", "y", "z"), "c": (False, True)}


def study_of(value, *, factors=FACTORS, seeds=(0, 1, 2), keep=lambda point, seed: True, loss=None):
    """A study without traces whose accuracy is what `value` says, and its loss `loss`."""
    results = []
    for i, levels in enumerate(itertools.product(*factors.values())):
        point = dict(zip(factors, levels, strict=True))
        for seed in seeds:
            if keep(point, seed):
                reached = loss(point, seed) if loss else 1.0
                history = History((reached,) * 10, (epoch_of(value(point, seed), reached),))
                results.append(CellResult(f"{i}-{seed}", point, seed, "done", {}, history))
    return Study("study", factors, tuple(results))


def trained_study():
    """A study of 32 cells as it was trained, from its tables: loss and accuracy."""
    cells = pd.read_csv(TRAINED / "cells.csv")
    counts = pd.read_csv(TRAINED / "confusion.csv")
    names = [c for c in cells.columns if c.startswith("factor.")]
    factors = {n.removeprefix("factor."): tuple(cells[n].unique().tolist()) for n in names}
    results = []
    for row in cells.to_dict("records"):
        own = counts[counts["cell"] == row["cell"]]
        matrix = own["count"].to_numpy().reshape(5, 5)
        epoch = epoch_of(
            row["val_accuracy"], row["final_loss"], train_accuracy=row["train_accuracy"],
            confusion=tuple(map(tuple, matrix.tolist())),
        )  # fmt: skip
        point = {n.removeprefix("factor."): row[n] for n in names}
        history = History((row["final_loss"],) * 10, (epoch,))
        results.append(CellResult(row["cell"], point, row["seed"], "done", {}, history))
    return Study("hw5", factors, tuple(results))


@pytest.fixture(scope="session")
def made():
    """The makers of this file, by name."""
    from types import SimpleNamespace

    return SimpleNamespace(
        confusion=confusion_of, epoch=epoch_of, study=study_of, trained=trained_study
    )
