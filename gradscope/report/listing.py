"""The tables that stand on the page: columns, rows and what is written in each place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gradscope.report.embed import finite
from gradscope.study import labels
from gradscope.study.tables import Tables


@dataclass(frozen=True)
class Column:
    """One column of a table on the page."""

    key: str
    title: str
    hint: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Entry:
    """One entry of a table on the page: what is shown, and what is sorted by."""

    text: str
    value: float | str | None = None
    badge: str = ""
    """Kind of badge, where it is one."""


_OUTCOMES = (
    Column("slope", "slope", "decades per block, going backwards", is_number=True),
    Column("total_decades", "in all", "decades from the last block to the first", True),
    Column("final_loss", "loss", "training loss of the last epoch", is_number=True),
    Column("fit_accuracy", "fit", "accuracy on training images, in evaluation mode", True),
    Column("gap", "gap", "fit less validation accuracy: generalisation", is_number=True),
)


def columns(tables: Tables) -> list[Column]:
    """The columns of the table of cells: what came out first, then what it is of, then the rest."""
    factors = [Column(f"factor.{f.name}", f.name) for f in tables.factors]
    if not factors:
        factors = [Column("variant", "cell")]
    if tables.n_seeds > 1:
        factors.append(Column("seed", "seed", is_number=True))
    told = [
        Column("verdict", "gradient", "verdict of the diagnosis"),
        Column("val_accuracy", "accuracy", "validation, after the last epoch", is_number=True),
        Column("val_low", "95 %", "interval of the accuracy over the draw of its images"),
        Column("status", "status", "not learning: at the loss and accuracy of chance"),
        *factors,
        Column("rests_on", "verdict rests on", "stretch of the network, and its decades"),
        *_OUTCOMES,
        Column("duration_s", "time", is_number=True),
    ]
    return _known(told, tables.frames["cells"])


def variant_columns(tables: Tables) -> list[Column]:
    """The columns of the table of variants: each number with its deviation over seeds."""
    told = [
        Column("verdict", "gradient", "verdicts of its seeds"),
        *_deviating(Column("val_accuracy", "accuracy", "validation, mean over seeds", True)),
        Column("status", "status", "not learning: at the loss and accuracy of chance"),
        *(Column(f"factor.{f.name}", f.name) for f in tables.factors),
        Column("seeds", "seeds", is_number=True),
    ]
    for column in _OUTCOMES:
        told += _deviating(column)
    return _known(told, tables.frames["variants"])


def _deviating(column: Column) -> list[Column]:
    return [column, Column(f"{column.key}_sd", "± sd", "standard deviation over seeds", True)]


def _known(told: list[Column], frame: pd.DataFrame) -> list[Column]:
    """The columns with at least one value."""
    known = frame.notna().any() & (frame != "").any()
    return [column for column in told if known[column.key]]


@dataclass(frozen=True)
class Row:
    """One row of a table on the page."""

    entries: Sequence[Entry]
    """One per column."""
    place: int
    """Which row it is of the table beside the page."""
    title: str = ""
    v: int | None = None
    """Index of the variant, by which a filter finds it."""
    cell: int | None = None
    """Index of the cell, where it is one."""


def rows(tables: Tables) -> list[Row]:
    """The rows of the table of cells."""
    of = tables.variant_of
    shown = columns(tables)
    return [
        Row(_entries(tables, shown, row, of[i]), i, str(row["cell"]), of[i], i)
        for i, row in enumerate(tables.cell_rows)
    ]


def variant_rows(tables: Tables) -> list[Row]:
    """The rows of the table of variants; none with one seed."""
    if tables.n_seeds < 2:
        return []
    shown = variant_columns(tables)
    told = tables.frames["variants"].to_dict("records")
    return [
        Row(_entries(tables, shown, row, v.index), v.index, v.label, v.index)
        for v, row in zip(tables.variants, told, strict=True)
    ]


def _entries(
    tables: Tables, shown: Sequence[Column], row: Mapping[Any, Any], variant: int
) -> list[Entry]:
    places = {f"factor.{f.name}": place for place, f in enumerate(tables.factors)}
    entries = []
    for column in shown:
        place = places.get(column.key)
        if place is None:
            entries.append(_entry(column, row))
            continue
        level = tables.variants[variant].levels[place]
        name = tables.factors[place].levels[level] if level >= 0 else labels.MISSING
        entries.append(Entry(name, level))
    return entries


_WRITTEN: dict[str, Callable[[float], str]] = {
    "val_accuracy": labels.percent,
    "fit_accuracy": labels.percent,
    "gap": labels.percent,
    "duration_s": labels.duration,
    "seed": "{:.0f}".format,
    "seeds": "{:.0f}".format,
    "position": "{:.0f}".format,
    "slope": labels.fixed,
    "total_decades": labels.fixed,
}
"""Column -> how its numbers are written, where not at three significant digits."""


def _entry(column: Column, row: Mapping[Any, Any]) -> Entry:
    value = row[column.key]
    if column.key in ("status", "verdict"):
        return Entry(value or labels.MISSING, value, badge=value)
    if column.key == "val_low":
        low, high = float(row["val_low"]), float(row["val_high"])
        known = math.isfinite(low)
        text = f"{100 * low:.0f}\N{EN DASH}{100 * high:.0f} %" if known else labels.MISSING
        return Entry(text, finite(low))
    if not column.is_number:
        return Entry(str(value) or labels.MISSING, str(value))
    written = _WRITTEN.get(column.key.removesuffix("_sd"), labels.number)
    if column.key.endswith("_sd") and written is labels.fixed:
        written = labels.number
    if column.key.endswith("_change"):
        written = labels.fixed
    return Entry(written(float(value)), finite(float(value)))


@dataclass(frozen=True)
class Listing:
    """A table of the page that is a table beside it, row by row."""

    name: str
    """Of the table beside the page."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def listing(tables: Tables, name: str, title: str, told: Sequence[Column]) -> Listing | None:
    """A table of the page from a table beside it; None where that has no rows."""
    frame = tables.frames.get(name)
    if frame is None or not len(frame):
        return None
    shown = _known([c for c in told if c.key in frame], frame)
    records = frame.to_dict("records")
    rows = tuple(Row([_entry(column, row) for column in shown], i) for i, row in enumerate(records))
    return Listing(name, title, tuple(shown), rows)


def of_trace(tables: Tables) -> list[Listing]:
    """Blocks and layers of a single run, in place of a table of cells."""
    told = [
        listing(tables, "blocks", "Blocks", [
            Column("block", "block"), Column("type", "type"),
            Column("log10_grad", "log10 |gradient|", "with respect to its output", True),
            Column("chi", "chi to the next", "gradient here over that at the next block", True),
            Column("predicted_chi", "predicted", "mean-field theory", is_number=True),
            Column("log10_activation", "log10 rms", "of its output", is_number=True),
        ]),
        listing(tables, "layers", "Layers with weights", [
            Column("layer", "layer"), Column("type", "type"),
            Column("update_ratio", "update / weight", "median over the steps", is_number=True),
            Column("weight_norm_first", "weight norm, first step", is_number=True),
            Column("weight_norm", "weight norm, last step", is_number=True),
        ]),
    ]  # fmt: skip
    return [each for each in told if each is not None]


def side_by_side(tables: Tables) -> Listing | None:
    """Two runs matched by layer, or two studies matched by cell."""
    names = tables.factors[0].levels if tables.factors else ("before", "after")
    first, last = names[0], names[-1]
    told = [Column("layer", "layer"), Column("cell", "cell"), Column("seed", "seed", "", True)]
    for key, title, is_number in (
        ("type", "type", False), ("verdict", "gradient", False), ("status", "status", False),
        ("log10_grad", "log10 |gradient|", True), ("log10_update", "log10 update/weight", True),
        ("slope", "slope", True), ("final_loss", "loss", True), ("val_accuracy", "accuracy", True),
    ):  # fmt: skip
        told += [
            Column(f"{key}_before", f"{title}, {first}", "", is_number),
            Column(f"{key}_after", f"{title}, {last}", "", is_number),
        ]
        if is_number:
            told.append(Column(f"{key}_change", "change", "", is_number=True))
    return listing(tables, "matched", "Side by side", told)
