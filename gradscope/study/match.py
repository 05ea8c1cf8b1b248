"""Before and after: two runs matched layer by layer, two studies matched cell by cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from gradscope.study import labels
from gradscope.study.reading import Reading
from gradscope.study.tables import Tables

MOVED = 0.3
"""Decades by which a layer's gradient or update must differ to be called moved: a factor of two."""


def matched_layers(tables: Tables, pair: tuple[int, int]) -> pd.DataFrame:
    """Two runs side by side, one row for each block or layer that either has.

    Args:
        tables: of the runs.
        pair: which two of the readings.

    Returns:
        Columns ``layer``, ``type_before`` and ``type_after``, log10 of the gradient and of
        update/weight before, after, and the change; NaN where one of them has no such layer.
    """
    before, after = (_by_layer(tables.readings[i]) for i in pair)
    rows = []
    for name in [*before, *(n for n in after if n not in before)]:
        old, new = before.get(name, {}), after.get(name, {})
        row: dict[str, Any] = {"layer": name}
        for side, told in (("before", old), ("after", new)):
            row[f"type_{side}"] = told.get("type", "")
        for column in ("log10_grad", "log10_update"):
            first, second = old.get(column, math.nan), new.get(column, math.nan)
            row[f"{column}_before"], row[f"{column}_after"] = first, second
            row[f"{column}_change"] = second - first
        rows.append(row)
    return pd.DataFrame(rows)


def _by_layer(reading: Reading) -> dict[str, dict[str, Any]]:
    """What is known of each block and layer, in execution order."""
    found: dict[str, dict[str, Any]] = {}
    flow = reading.flow
    grads = dict(zip(flow.blocks, flow.log10_grad, strict=True)) if flow else {}
    if not grads:
        grads = dict(reading.weights)
    for name, value in grads.items():
        found[name] = {"type": reading.types.get(name, ""), "log10_grad": value}
    told = reading.measured.get("layers", {})
    for name, kind, ratio in zip(
        told.get("layer", ()), told.get("type", ()), told.get("update_ratio", ()), strict=True
    ):
        own = found.setdefault(name, {"type": kind})
        own["log10_update"] = math.log10(ratio) if ratio > 0 else math.nan
    return found


def matched_cells(tables: Tables, factor: str) -> pd.DataFrame:
    """Cells of two studies side by side: those that differ in nothing but the study.

    Args:
        tables: of the merged studies.
        factor: the one that tells the studies apart; its first two levels are compared.

    Returns:
        One row per matched cell: verdict, status, slope, loss and accuracy before and after. Cells
        without a counterpart are left out.
    """
    place = next((i for i, f in enumerate(tables.factors) if f.name == factor), None)
    if place is None:
        return pd.DataFrame()
    others = [i for i in range(len(tables.factors)) if i != place]
    rows = tables.cell_rows
    sides: tuple[dict[Any, int], dict[Any, int]] = ({}, {})
    for variant in tables.variants:
        if variant.levels[place] in (0, 1):
            for cell in variant.cells:
                key = (*(variant.levels[i] for i in others), rows[cell]["seed"])
                sides[variant.levels[place]][key] = cell
    found = []
    for key, old in sides[0].items():
        if key in sides[1]:
            found.append(_cell_row(tables, key, others, rows[old], rows[sides[1][key]]))
    return pd.DataFrame(found)


def _cell_row(
    tables: Tables, key: Any, others: list[int], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    chosen = [(tables.factors[i], level) for i, level in zip(others, key[:-1], strict=True)]
    words = " \u00b7 ".join(f"{f.name} {f.levels[level]}" for f, level in chosen if level >= 0)
    row: dict[str, Any] = {"cell": words or tables.study.name, "seed": key[-1]}
    for name in ("verdict", "status"):
        row[f"{name}_before"], row[f"{name}_after"] = old[name], new[name]
    for name in ("slope", "final_loss", "val_accuracy"):
        row[f"{name}_before"], row[f"{name}_after"] = old[name], new[name]
        row[f"{name}_change"] = new[name] - old[name]
    return row


def layer_sentences(
    tables: Tables, pair: tuple[int, int], matched: pd.DataFrame
) -> tuple[str, ...]:
    """What changed between two runs: verdict, findings, flow and updates."""
    old, new = (tables.readings[i] for i in pair)
    names = (old.result.id, new.result.id)
    sentences = [_verdicts(old.verdict, new.verdict, names), *_findings(old, new, names)]
    both = matched.dropna(subset=["log10_grad_change"])
    only = len(matched) - sum(
        bool(a and b) for a, b in zip(matched["type_before"], matched["type_after"], strict=True)
    )
    sentences.append(
        f"{labels.count(len(both), 'layer')} matched by name"
        + (f", {only} only in one of them." if only else ", all of them in both.")
    )
    for column, what in (("log10_grad", "gradient"), ("log10_update", "update over weight")):
        known = matched.dropna(subset=[f"{column}_change"])
        if not len(known):
            continue
        moved = known[known[f"{column}_change"].abs() >= MOVED]
        top = int(known[f"{column}_change"].abs().to_numpy().argmax())
        change = float(known[f"{column}_change"].iloc[top])
        layer = known["layer"].iloc[top]
        sentences.append(
            f"The {what} moved by a factor of two or more in {len(moved)} of "
            f"{labels.count(len(known), 'layer')}; most at {layer}: "
            f"{labels.fixed(change, 2)} decades."
        )
    return tuple(sentences)


def _verdicts(old: str, new: str, names: tuple[str, str]) -> str:
    if not old or not new:
        return ""
    if old == new:
        return f"Both are {old}."
    return f"{names[0]} is {old}, {names[1]} is {new}."


def _findings(old: Reading, new: Reading, names: tuple[str, str]) -> list[str]:
    """Kinds of findings that are gone, that are new, and that stay."""
    before, after = (
        {f["kind"] for f in r.diagnosis.get("findings", ()) if f["severity"] != "info"}
        for r in (old, new)
    )
    parts = (
        (before - after, f"Found in {names[0]} alone"),
        (after - before, f"Found in {names[1]} alone"),
        (before & after, "Found in both"),
    )
    return [f"{words}: {labels.listed(sorted(kinds))}." for kinds, words in parts if kinds]


def cell_sentences(tables: Tables, factor: str, matched: pd.DataFrame) -> tuple[str, ...]:
    """What changed from one study to the other, over the matched cells."""
    levels = next((f.levels for f in tables.factors if f.name == factor), ("", ""))
    if not len(matched):
        return ("No cell of one study has a counterpart in the other.",)
    total = len(tables.readings)
    sentences = [
        (
            f"{labels.count(len(matched), 'pair')} of cells that differ in nothing but the {factor}"
            f" ({labels.listed(levels[:2])}), out of {total} cells."
        )
    ]
    changed = Counter(
        f"{row['verdict_before']} to {row['verdict_after']}"
        for row in matched.to_dict("records")
        if row["verdict_before"] != row["verdict_after"]
    )
    words = [f"{n} from {change}" for change, n in changed.most_common()]
    sentences.append(f"Verdicts that changed: {labels.listed(words) if words else 'none'}.")
    gain = matched["val_accuracy_change"].dropna()
    if len(gain):
        sentences.append(
            f"Validation accuracy changed by {labels.fixed(100 * float(gain.mean()), 1)} points on "
            f"average, from {labels.fixed(100 * float(gain.min()), 1)} to "
            f"{labels.fixed(100 * float(gain.max()), 1)}."
        )
    return tuple(sentences)
