"""What the page says outside its figures: rows, badges, findings, provenance; not escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pandas as pd

from gradscope.report.embed import finite
from gradscope.study import labels
from gradscope.study.columns import class_names
from gradscope.study.effects import METRICS, Effect, Metric
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
            Column("chi", "chi to the next", "gradient norm here over that at the next block", True),
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


def badges(tables: Tables) -> list[tuple[str, int]]:
    """How many cells have each verdict, or each status where there is none."""
    counts: dict[str, int] = {}
    for reading in tables.readings:
        name = reading.verdict or reading.result.status
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def unfinished(tables: Tables) -> list[dict[str, Any]]:
    """Cells that diverged or failed, and where."""
    rows = tables.cell_rows
    of = tables.variant_of
    found = []
    for i, row in enumerate(rows):
        if row["status"] in ("diverged", "failed") or row["error"]:
            step = row["first_bad_step"]
            known = step is not None and not pd.isna(step)
            where = f"step {int(step)}" if known else labels.MISSING
            found.append({**row, "where": where, "v": of[i]})
    return found


def effect_rows(found: Sequence[Effect]) -> list[dict[str, Any]]:
    """The rows of the table of comparisons, in the order of the effects."""
    metrics: dict[str, Metric] = {m.key: m for m in METRICS}
    rows = []
    for effect in found:
        words = f"{effect.factor}: {effect.level} vs {effect.reference}"
        if not effect.is_main:
            words += f" {labels.TIMES} {effect.by}: {effect.by_level} vs {effect.by_reference}"
        rows.append({"effect": effect, "words": words, "metric": metrics[effect.metric]})
    return rows


@dataclass(frozen=True)
class FindingGroup:
    """Findings of one kind with one remedy, over all cells."""

    kind: str
    severity: str
    messages: tuple[str, ...]
    remedies: tuple[str, ...]
    places: tuple[tuple[str, str, int], ...]
    """Cell and place in it, evidence, index of the variant."""
    n_cells: int


def findings(tables: Tables) -> list[FindingGroup]:
    """Findings grouped by kind, the gravest first."""
    order = {"error": 0, "warning": 1, "info": 2}
    of = {r.result.id: tables.variant_of[i] for i, r in enumerate(tables.readings)}
    frame = tables.frames["findings"]
    groups: list[FindingGroup] = []
    if not len(frame):
        return groups
    for (kind, severity), rows in frame.groupby(["kind", "severity"], sort=False):
        variants = [of[str(cell)] for cell in rows["cell"]]
        several = len(tables.variants) > 1
        places = [
            f"{tables.variants[v].label}: {where}" if several else str(where)
            for v, where in zip(variants, rows["where"], strict=True)
        ]
        groups.append(
            FindingGroup(
                str(kind),
                str(severity),
                tuple(dict.fromkeys(rows["message"])),
                tuple(filter(None, dict.fromkeys(rows["remedy"]))),
                tuple(zip(places, rows["evidence"], variants, strict=True)),
                rows["cell"].nunique(),
            )
        )
    return sorted(groups, key=lambda g: (order.get(g.severity, 3), -g.n_cells))


def provenance(tables: Tables) -> list[tuple[str, str]]:
    """What was run, on what, with what: one line each; values that differ are listed."""
    found: dict[str, list[str]] = {}
    for reading in tables.readings:
        facts = {**reading.metadata, **reading.result.environment}
        for name, value in facts.items():
            text = labels.text(value)
            if text and text not in found.setdefault(str(name), []):
                found[str(name)].append(text)
    seconds = [r.result.duration_s for r in tables.readings if r.result.duration_s]
    lines = [("network" if tables.kind == "trace" else "study", tables.study.name)]
    if tables.kind in ("study", "studies"):
        description = tables.study.grid.get("description")
        if description:
            lines.append(("description", labels.text(description)))
        seeds = sorted({r.result.seed for r in tables.readings})
        cells = f"{len(tables.readings)} ({labels.count(len(tables.variants), 'variant')})"
        lines += [("cells", cells), ("seeds", ", ".join(str(s) for s in seeds))]
    lines += [*_data(tables), *_networks(tables)]
    if seconds:
        lines.append(("run time", f"{labels.duration(sum(seconds))} over all cells"))
    lines += [(name, labels.listed(values, 8)) for name, values in found.items()]
    return [*lines, ("report", f"gradscope {metadata.version('gradscope-torch')}")]


def _data(tables: Tables) -> list[tuple[str, str]]:
    """Classes, and how many images of each were validated on."""
    counts: dict[str, int] = {}
    for reading in tables.readings:
        epochs = reading.result.history.epochs
        if epochs and epochs[-1].confusion:
            totals = [sum(row) for row in epochs[-1].confusion]
            counts = dict(zip(class_names(reading.result), totals, strict=True))
            break
    if not counts:
        return []
    words = [f"{name} {n:,}" for name, n in counts.items()]
    return [
        ("classes", labels.listed(counts, 20)),
        ("validation images", f"{sum(counts.values()):,}: {', '.join(words[:20])}"),
    ]


def _networks(tables: Tables) -> list[tuple[str, str]]:
    """Layers, parameter tensors and parameters; the range over networks that differ."""
    told = (
        ("blocks", [len(r.flow.blocks) for r in tables.readings if r.flow is not None]),
        ("layers with parameters", [r.n_layers for r in tables.readings if r.n_layers]),
        ("parameter tensors", [r.n_tensors for r in tables.readings if r.n_tensors]),
        (
            "parameters",
            [int(row["n_parameters"]) for row in tables.cell_rows if row["n_parameters"]],
        ),
    )
    lines = []
    for name, numbers in told:
        if numbers:
            low, high = min(numbers), max(numbers)
            lines.append((name, f"{low:,}" if low == high else f"{low:,} to {high:,}"))
    return lines


def settings(tables: Tables) -> str:
    """The grid as it was written, else the configuration of the first cell, as JSON."""
    config = tables.study.grid or next((r.result.config for r in tables.readings), {})
    return json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else ""
