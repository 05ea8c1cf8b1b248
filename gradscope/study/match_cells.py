"""Before and after: two studies matched cell by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from gradscope.study import labels
from gradscope.study.tables import Tables


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
