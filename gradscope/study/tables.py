"""The tables that the page is drawn from, and the files in which they stand beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gradscope.study import columns, labels
from gradscope.study.outcome import outcome
from gradscope.study.reading import Limits, Reading, read_cells
from gradscope.study.results import Study
from gradscope.trace.table import Trace

CSV_LIMIT = 2_000
"""Rows up to which a table is written as CSV; beyond, where nobody reads it by eye, as Parquet."""


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
    kind: str = "study"
    """What was given: ``trace``, ``traces``, ``study`` or ``studies``, see `merge.gather`."""

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

    @property
    def published(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, under the names of their files."""
        single = {"cells": "summary"} if self.kind == "trace" else {}
        return {single.get(name, name): f for name, f in self.frames.items() if len(f)}

    def write(self, folder: Path) -> dict[str, Path]:
        """Write every table that has rows beside the page: CSV, or Parquet where it is long.

        Args:
            folder: where to; made when missing.

        Returns:
            Name of the table -> its file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for name, frame in self.published.items():
            csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
            for stale in (csv, parquet):
                stale.unlink(missing_ok=True)
            if len(frame) <= CSV_LIMIT:
                frame.to_csv(csv, index=False, float_format="%.9g")
                written[name] = csv
            else:
                frame.to_parquet(parquet, index=False, compression="zstd")
                written[name] = parquet
        return written


def read(study: Study, traces: dict[str, Trace] | None = None, kind: str = "study") -> Tables:
    """Read all cells of a study.

    Args:
        study: what was run.
        traces: cell id -> its trace, where it is not on disk.
        kind: what was given.

    Returns:
        Tables ``cells``, ``variants``, and one for each of `columns.TABLES`.
    """
    limits = Limits.for_cells(len(study.results))
    readings = read_cells(study.results, limits, traces or {})
    factors = _factors(study)
    variants = _variants(study, factors)
    tables = Tables(study, readings, factors, variants, limits, kind=kind)
    tables.frames["cells"] = _cells(tables)
    if tables.n_seeds > 1:
        tables.frames["variants"] = over_seeds(tables)
    for name, of in columns.TABLES.items():
        tables.frames[name] = _concat(tables, of)
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


_NUMBERS = ("slope", "total_decades", "final_loss", "fit_accuracy", "val_accuracy", "gap")
"""Outcomes that the seeds of a variant have a mean of."""


def over_seeds(tables: Tables) -> pd.DataFrame:
    """One row per variant: mean and standard deviation over its seeds, and how they ended.

    A standard deviation needs two seeds with a number; NaN where there are fewer.
    """
    cells = tables.frames["cells"]
    rows = []
    for variant in tables.variants:
        own = cells.iloc[list(variant.cells)]
        row: dict[str, Any] = {"variant": variant.label, "seeds": len(own)}
        for factor, level in zip(tables.factors, variant.levels, strict=True):
            row[f"factor.{factor.name}"] = factor.levels[level] if level >= 0 else labels.MISSING
        for name in ("verdict", "status"):
            row[name] = _tally(own[name])
        for name in _NUMBERS:
            row[name] = own[name].mean()
            row[f"{name}_sd"] = own[name].std(ddof=1)
        rows.append(row)
    return pd.DataFrame(rows)


def _tally(words: pd.Series[str]) -> str:
    """``healthy`` where all agree, else ``2 healthy, 1 vanishing``."""
    counts = words[words != ""].value_counts()
    if len(counts) < 2:
        return str(counts.index[0]) if len(counts) else ""
    return ", ".join(f"{n} {word}" for word, n in counts.items())


def _concat(tables: Tables, of: Callable[[Reading], dict[str, Any]]) -> pd.DataFrame:
    """One long table from the columns of each cell, each row with the id of its cell."""
    parts: dict[str, list[Any]] = {}
    cells: list[str] = []
    for reading in tables.readings:
        found = of(reading)
        n = len(next(iter(found.values()))) if found else 0
        if n:
            cells += [reading.result.id] * n
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
    if not parts:
        return pd.DataFrame({"cell": []})
    joined = {name: list(itertools.chain.from_iterable(p)) for name, p in parts.items()}
    return pd.DataFrame({"cell": cells, **joined})
