"""Before and after: two runs matched layer by layer."""

from __future__ import annotations

import math
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
