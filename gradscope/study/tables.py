"""The tables that the page is drawn from, and the files in which they stand beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradscope.study import labels, objectives
from gradscope.study.reading import Limits, Reading, first_bad_step, read_cells
from gradscope.study.results import CellResult, Study
from gradscope.trace.table import Trace

CSV_LIMIT = 200_000
"""Rows up to which a table is written as CSV; beyond, as Parquet."""

FINDING = ("kind", "severity", "where", "message", "evidence", "remedy")
"""Columns of the table of findings, beside the cell."""


@dataclass(frozen=True)
class Variant:
    """One point of the matrix: what its seeds have in common."""

    index: int
    label: str
    short: str
    """Its levels alone, in the order of the factors: ``yes · 32``."""
    levels: tuple[int, ...]
    """For each factor the index of this variant's value."""
    cells: tuple[int, ...]
    """Its runs, one per seed, as indices into the readings."""


@dataclass(frozen=True)
class Factor:
    """One axis of the matrix."""

    name: str
    levels: tuple[str, ...]
    """Its values as they are shown, in the order of the grid."""
    raw: tuple[Any, ...]
    """The same, as the grid has them."""


@dataclass(frozen=True)
class Tables:
    """Everything a report draws: the readings, and the tables that its numbers stand in."""

    study: Study
    readings: tuple[Reading, ...]
    factors: tuple[Factor, ...]
    """Factors with more than one value in the grid."""
    variants: tuple[Variant, ...]
    limits: Limits
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Name of the table -> its rows; see `read`."""

    @property
    def n_seeds(self) -> int:
        """The largest number of seeds of one variant."""
        return max((len(v.cells) for v in self.variants), default=0)

    @property
    def variant_of(self) -> dict[int, int]:
        """Index of a reading -> index of its variant."""
        return {cell: v.index for v in self.variants for cell in v.cells}

    @property
    def cell_rows(self) -> list[dict[str, Any]]:
        """The table of cells by rows, at the place of the readings."""
        return [
            {str(k): v for k, v in row.items()} for row in self.frames["cells"].to_dict("records")
        ]

    def write(self, folder: Path) -> dict[str, Path]:
        """Write every table that has rows beside the page: CSV, or Parquet where it is long.

        Args:
            folder: where to; made when missing.

        Returns:
            Name of the table -> its file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for name, frame in self.frames.items():
            if not len(frame):
                continue
            csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
            for stale in (csv, parquet):
                stale.unlink(missing_ok=True)
            if len(frame) <= CSV_LIMIT:
                frame.to_csv(csv, index=False)
                written[name] = csv
            else:
                frame.to_parquet(parquet, index=False, compression="zstd")
                written[name] = parquet
        return written


def read(study: Study, traces: dict[str, Trace] | None = None) -> Tables:
    """Read all cells of a study.

    Args:
        study: what was run.
        traces: cell id -> its trace, where it is not on disk.

    Returns:
        Tables ``cells, blocks, weights, ratio, heat, loss, epochs, classes, confusion, logged,
        findings``.
    """
    limits = Limits.for_cells(len(study.results))
    readings = read_cells(study.results, limits, traces or {})
    factors = _factors(study)
    variants = _variants(study, factors)
    tables = Tables(study, readings, factors, variants, limits)
    tables.frames.update(
        cells=_cells(tables),
        blocks=_concat(tables, _blocks, ["position", "block", "log10_grad", "log10_activation"]),
        weights=_concat(tables, _weights, ["position", "layer", "log10_grad"]),
        ratio=_concat(tables, _ratio, ["step", "first_to_last"]),
        heat=_concat(tables, _heat, ["step", "position", "layer", "log10_grad"]),
        loss=_concat(tables, _loss, ["step", "loss", "smoothed"]),
        epochs=_concat(tables, _epochs, ["epoch", "step", "train_loss", "val_loss"]),
        confusion=_concat(tables, _confusion, ["true", "predicted", "count", "share"]),
        logged=_concat(tables, _logged, ["metric", "step", "value"]),
        findings=_concat(tables, _findings, list(FINDING)),
    )
    return tables


def _factors(study: Study) -> tuple[Factor, ...]:
    return tuple(
        Factor(name, tuple(labels.level(v) for v in values), tuple(values))
        for name, values in study.factors.items()
        if len(values) > 1
    )


def _variants(study: Study, factors: Sequence[Factor]) -> tuple[Variant, ...]:
    """Cells that differ in nothing but their seed, in the order of the study."""
    keys = [[labels.identity(v) for v in f.raw] for f in factors]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, result in enumerate(study.results):
        at = [labels.identity(result.factors.get(f.name)) for f in factors]
        place = tuple(k.index(a) if a in k else -1 for k, a in zip(keys, at, strict=True))
        groups.setdefault(place, []).append(i)
    variants = []
    for index, (place, cells) in enumerate(groups.items()):
        chosen = {f.name: f.raw[p] for f, p in zip(factors, place, strict=True) if p >= 0}
        label = labels.variant(chosen) or study.name
        short = " · ".join(labels.level(value) for value in chosen.values()) or study.name
        variants.append(Variant(index, label, short, place, tuple(cells)))
    return tuple(variants)


def _cells(tables: Tables) -> pd.DataFrame:
    """One row per cell."""
    of = tables.variant_of
    rows = []
    for i, reading in enumerate(tables.readings):
        row: dict[str, Any] = {"cell": reading.result.id, "variant": tables.variants[of[i]].label}
        for factor in tables.factors:
            row[f"factor.{factor.name}"] = labels.level(reading.result.factors.get(factor.name))
        rows.append(row | outcome(reading))
    return pd.DataFrame(rows)


def outcome(reading: Reading) -> dict[str, Any]:
    """The numbers that stand for one cell; NaN where it has none.

    ``final_loss`` is the mean training loss of the last epoch, or of the last 5 % of the steps
    where no epoch ended; a diverged cell has none. Accuracies are shares, 0 to 1.
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
    return {
        "seed": result.seed,
        "status": result.status,
        "verdict": reading.verdict,
        "slope": flow.slope if flow and measured else math.nan,
        "slope_low": flow.slope_low if flow and measured else math.nan,
        "slope_high": flow.slope_high if flow and measured else math.nan,
        "total_decades": flow.total if flow and measured else math.nan,
        "final_loss": loss,
        "train_accuracy": last.train_accuracy if last else math.nan,
        "val_accuracy": last.val_accuracy if last else math.nan,
        "best_val_accuracy": max((e.val_accuracy for e in epochs), default=math.nan),
        "gap": last.train_accuracy - last.val_accuracy if last else math.nan,
        "epochs": len(epochs),
        "steps": len(steps),
        "first_bad_step": first_bad_step(steps),
        "n_parameters": result.n_parameters,
        "images_per_s": result.images_per_s or math.nan,
        "duration_s": result.duration_s or math.nan,
        "error": result.error or reading.trace_error,
        **objectives.outcomes(result),
    }


def _concat(
    tables: Tables, rows: Callable[[Reading], dict[str, Any]], columns: list[str]
) -> pd.DataFrame:
    """One long table from the columns of each cell, each row with the id of its cell."""
    parts: dict[str, list[Any]] = {}
    cells: list[str] = []
    for reading in tables.readings:
        found = rows(reading)
        n = len(next(iter(found.values()))) if found else 0
        if n:
            cells += [reading.result.id] * n
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
    if not parts:
        return pd.DataFrame(columns=["cell", *columns])
    joined = {name: list(itertools.chain.from_iterable(p)) for name, p in parts.items()}
    return pd.DataFrame({"cell": cells, **joined})


def _blocks(reading: Reading) -> dict[str, Any]:
    """``chi`` is the factor from the next block back to this one."""
    flow = reading.flow
    if flow is None or not flow.blocks:
        return {}
    return {
        "position": range(len(flow.blocks)),
        "block": flow.blocks,
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
    columns["gap"] = [e.train_accuracy - e.val_accuracy for e in epochs]
    columns["duration_s"] = [e.duration_s for e in epochs]
    return columns


def _logged(reading: Reading) -> dict[str, Any]:
    logged = reading.result.history.logged
    pairs = [(name, step, value) for name, values in logged.items() for step, value in values]
    if not pairs:
        return {}
    names, steps, values = zip(*pairs, strict=True)
    return {"metric": names, "step": steps, "value": values}


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
    return {name: [labels.text(f.get(name, "")) for f in findings] for name in FINDING}
