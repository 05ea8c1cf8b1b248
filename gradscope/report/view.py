"""What the page says outside its figures: rows, badges, findings, provenance; not escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pandas as pd

from gradscope.report.embed import finite
from gradscope.study import labels
from gradscope.study.effects import Effect, Metric, metrics_in
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


def columns(tables: Tables) -> list[Column]:
    """The columns of the table of cells."""
    columns = [Column(f"factor.{f.name}", f.name) for f in tables.factors]
    if not columns:
        columns = [Column("variant", "cell")]
    if tables.n_seeds > 1:
        columns.append(Column("seed", "seed", is_number=True))
    measured = [
        Column("status", "status"),
        Column("verdict", "gradient", "verdict of the diagnosis"),
        Column("slope", "slope", "decades per block, going backwards", is_number=True),
        Column("total_decades", "in all", "decades from the last block to the first", True),
        Column("final_loss", "loss", "training loss of the last epoch", is_number=True),
        Column("val_accuracy", "accuracy", "validation, after the last epoch", is_number=True),
        Column("gap", "gap", "training less validation accuracy", is_number=True),
        Column("duration_s", "time", is_number=True),
    ]
    known = tables.frames["cells"].notna().any()
    return [*columns, *(c for c in measured if known[c.key])]


def rows(tables: Tables) -> list[tuple[int, str, list[Entry]]]:
    """Index of the variant, id of the cell, and an entry per column."""
    of = tables.variant_of
    rows = []
    shown = columns(tables)
    for i, row in enumerate(tables.cell_rows):
        entries = [_entry(column, row) for column in shown]
        for place, factor in enumerate(tables.factors):
            level = tables.variants[of[i]].levels[place]
            entries[place] = Entry(factor.levels[level] if level >= 0 else labels.MISSING, level)
        rows.append((of[i], str(row["cell"]), entries))
    return rows


_WRITTEN: dict[str, Callable[[float], str]] = {
    "val_accuracy": labels.percent,
    "gap": labels.percent,
    "duration_s": labels.duration,
    "seed": "{:.0f}".format,
    "slope": labels.fixed,
    "total_decades": labels.fixed,
}
"""Column -> how its numbers are written, where not at three significant digits."""


def _entry(column: Column, row: Mapping[str, Any]) -> Entry:
    value = row[column.key]
    if column.key in ("status", "verdict"):
        return Entry(value or labels.MISSING, value, badge=value)
    if not column.is_number:
        return Entry(str(value), str(value))
    written = _WRITTEN.get(column.key, labels.number)
    return Entry(written(float(value)), finite(float(value)))


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
    metrics: dict[str, Metric] = {m.key: m for m in metrics_in(found)}
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
    groups = []
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
                tuple(dict.fromkeys(rows["remedy"])),
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
    seeds = sorted({r.result.seed for r in tables.readings})
    lines = [
        ("study", tables.study.name),
        ("cells", f"{len(tables.readings)} ({labels.count(len(tables.variants), 'variant')})"),
        ("seeds", ", ".join(str(s) for s in seeds)),
    ]
    if seconds:
        lines.append(("run time", f"{labels.duration(sum(seconds))} over all cells"))
    lines += [(name, labels.listed(values, 8)) for name, values in found.items()]
    return [*lines, ("report", f"gradscope {metadata.version('gradscope-torch')}")]


def settings(tables: Tables) -> str:
    """The grid as it was written, else the configuration of the first cell, as JSON."""
    config = tables.study.grid or next((r.result.config for r in tables.readings), {})
    return json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else ""
