"""What the page says outside its figures: rows, badges, findings, provenance; not escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pandas as pd

from gradscope.study import labels
from gradscope.study.columns import class_names
from gradscope.study.effect import Effect
from gradscope.study.metrics import Metric, metrics_in
from gradscope.study.tables import Tables


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


def description(tables: Tables) -> str:
    """What the grid says that it asks; empty where it says nothing."""
    told = tables.study.grid.get("description") if tables.kind != "trace" else None
    return labels.text(told) if told else ""


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
