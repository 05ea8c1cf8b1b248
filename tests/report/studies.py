"""Studies made from the dataclasses, with real Parquet files, for any matrix of factors."""

import dataclasses
import itertools
import math

import torch

from gradscope.study.results import CellResult, Epoch, History, Study
from gradscope.trace.structure import Block, ModuleInfo, Structure
from gradscope.trace.table import Prediction, RecordedStep, RecordedTensor, Trace
from gradscope.trace.vocabulary import STATISTICS

NORM, RMS = list(STATISTICS).index("norm"), list(STATISTICS).index("rms")

HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_trace(
    seed, *, n_blocks=12, slope=0.0, steps=20, prefix="stack.", predict=True, rich=False,
    clipped=False,
):  # fmt: skip
    """A chain whose gradient changes by so many decades per block, with some scatter.

    A rich one has shares of dead, zero and saturated units, histograms, a loss scale and a logged
    metric too.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"{prefix}{i}" for i in range(n_blocks)]
    tensors, columns = [], []
    depth = torch.arange(n_blocks - 1, -1, -1, dtype=torch.float64)
    scatter = 0.05 * torch.randn(steps, n_blocks, generator=generator).double()
    trend = -0.5 * torch.linspace(0, 1, steps).double()
    logs = slope * depth + scatter + trend[:, None]
    for i, name in enumerate(names):
        tensors.append(RecordedTensor("activation", name, "", i, shape=(4, 8)))
        columns.append(torch.ones(steps))
        tensors.append(RecordedTensor("activation_grad", name, "", i, shape=(4, 8)))
        columns.append(10 ** logs[:, i])
        tensors.append(RecordedTensor("weight", name, "weight", i, shape=(8, 8)))
        columns.append(10 ** (logs[:, i] - 0.3))
    norms = torch.stack([c.float() for c in columns], dim=1)
    values = torch.full((steps, len(tensors), len(STATISTICS)), math.nan)
    for name in ("zero_fraction", "nonfinite_fraction"):
        values[:, :, list(STATISTICS).index(name)] = 0.0
    values[:, :, NORM] = norms
    values[:, :, RMS] = norms / math.sqrt(32)
    values[:, :, list(STATISTICS).index("abs_max")] = norms
    of_weights = [i for i, t in enumerate(tensors) if t.kind == "weight"]
    position = torch.arange(len(of_weights)) / len(of_weights)
    measured = {
        "weight_norm": 1.0 + position,
        "update_ratio": 10 ** (-3 - position),
        "unclipped_norm": values[:, of_weights, NORM] * (2.0 if clipped else 1.0),
    }
    for name, told in measured.items():
        values[:, of_weights, list(STATISTICS).index(name)] = told
    of_outputs = [i for i, t in enumerate(tensors) if t.kind == "activation"]
    for name, told in (("dead_fraction", 0.1), ("saturated_fraction", 0.2), ("zero_fraction", 0.5)):
        if rich:
            values[:, of_outputs, list(STATISTICS).index(name)] = told
    histograms = torch.zeros(steps, len(tensors), 64, dtype=torch.int32)
    histograms[:, of_weights, 30:36] = torch.arange(1, 7, dtype=torch.int32)
    structure = Structure(
        modules=tuple(ModuleInfo(n, "Linear", i, 1, n) for i, n in enumerate(names)),
        blocks=tuple(Block(n, "Linear", (n,), n, 0, is_cut=True) for n in names),
    )
    predictions = tuple(Prediction(n, 10**slope) for n in names) if predict else ()
    return Trace(
        tensors=tuple(tensors),
        steps=tuple(RecordedStep(10 * i, loss_scale=2.0**i if rich else 1.0) for i in range(steps)),
        values=values,
        present=torch.ones(steps, len(tensors), dtype=torch.bool),
        structure=structure,
        predictions=predictions,
        histograms=histograms if rich else None,
        logged={
            "loss": tuple((10 * i, 2.0 / (i + 1)) for i in range(steps)),
            "lr/0": tuple((10 * i, 1e-3 * 0.9**i) for i in range(steps)),
        }
        if rich
        else {},
        metadata={"torch": "2.15", "git_revision": "0123456789ab"},
    )


def make_history(seed, *, accuracy, epochs=3, steps=60, n_classes=3, diverges_at=None, fitted=True):
    """A loss that falls, and a confusion matrix whose diagonal is about the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, generator=generator)
    losses = [1.1 * math.exp(-i / steps) + 0.05 * float(noise[i]) for i in range(steps)]
    if diverges_at is not None:
        losses = [*losses[:diverges_at], math.nan]
        return History(tuple(losses), ())
    found = []
    for epoch in range(1, epochs + 1):
        right = round(40 * accuracy * (0.8 + 0.2 * epoch / epochs))
        wrong = (40 - right) // max(n_classes - 1, 1)
        confusion = tuple(
            tuple(right if i == j else wrong for j in range(n_classes)) for i in range(n_classes)
        )
        total = sum(map(sum, confusion))
        value = sum(confusion[i][i] for i in range(n_classes)) / total
        step = steps * epoch // epochs
        mean = sum(losses[:step]) / step
        fit = {"fit_loss": mean + 0.05, "fit_accuracy": value + 0.02} if fitted else {}
        found.append(
            Epoch(epoch, step, mean, value + 0.05, mean + 0.1, value, confusion, 1.5, **fit)
        )
    return History(tuple(losses), tuple(found))


def make_study(
    folder, factors, *, seeds=(0,), name="study", classes=("cat", "dog", "pizza"), trace=None,
    slope=None, accuracy=None, change=None, epochs=3,
):  # fmt: skip
    """A full factorial study on disk.

    `trace` gives the keyword arguments of `make_trace` for the factors of a cell, `slope` decades
    per block and `accuracy` a share for (factors, seed), `change` a changed result for partial
    studies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    points = [dict(zip(factors, p, strict=True)) for p in itertools.product(*factors.values())]
    for i, (point, seed) in enumerate(itertools.product(points, seeds)):
        made = make_trace(
            i, slope=slope(point, seed) if slope else 0.0, **(trace(point) if trace else {})
        )
        path = made.save(folder / f"{i}.parquet")
        result = CellResult(
            id=f"cell{i}-s{seed}",
            factors=point,
            seed=seed,
            status="done",
            config={"model": {"name": "net"}, "seed": seed},
            history=make_history(
                i, accuracy=accuracy(point, seed) if accuracy else 0.5, epochs=epochs,
                n_classes=len(classes),
            ),
            classes=tuple(classes),
            n_parameters=1000,
            images_per_s=100.0,
            duration_s=10.0,
            environment={"python": "3.11", "machine": "a machine"},
            trace_path=path,
        )  # fmt: skip
        results.append(change(i, result) if change else result)
    return Study(
        name, {k: tuple(v) for k, v in factors.items()}, tuple(results), {"name": name}, folder
    )


def reference_study(folder, seeds=(0,)):
    """Five factors and 32 variants, shaped like the study of a network with and without skips."""
    factors = {
        "skip": [True, False],
        "bn": [True, False],
        "init": ["kaiming", "xavier"],
        "depth": [32, 64],
        "lr": [1e-3, 2e-5],
    }

    def slope(point, seed):
        if point["skip"]:
            return 0.005 + 0.001 * seed
        if point["bn"]:
            return 0.12 + 0.01 * seed
        return -0.30 if point["init"] == "xavier" else -0.04

    def accuracy(point, seed):
        return 0.35 + 0.15 * point["skip"] + 0.1 * point["bn"] + 0.02 * seed + 5 * point["lr"]

    def change(i, result):
        if i == 7:
            history = make_history(i, accuracy=0.3, diverges_at=25)
            return dataclasses.replace(
                result, status="diverged", history=history, error="loss is NaN at step 25"
            )
        return result

    def trace(point):
        return {"n_blocks": 10 if point["depth"] == 32 else 18}

    classes = ("airplane", "bus", "cat", "dog", "pizza")
    return make_study(
        folder, factors, seeds=seeds, name="reference", classes=classes, slope=slope,
        accuracy=accuracy, change=change, trace=trace,
    )  # fmt: skip
