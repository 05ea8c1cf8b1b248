"""What all figures share: what they are drawn from, and how names are written on them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscope.report.scheme import Scheme
from gradscope.study.effect import Effect
from gradscope.study.reading import Reading
from gradscope.study.tables import Tables, Variant


@dataclass(frozen=True)
class Drawing:
    """What the figures are drawn from."""

    tables: Tables
    scheme: Scheme
    effects: tuple[Effect, ...] = field(default=())

    def readings(self, variant: Variant) -> list[Reading]:
        """The cells of one variant, one per seed."""
        return [self.tables.readings[i] for i in variant.cells]

    def cells(self) -> list[tuple[Variant, Reading]]:
        """All cells with their variants: the first seed of each variant before any second one."""
        ranked = [
            (rank, variant, reading)
            for variant in self.tables.variants
            for rank, reading in enumerate(self.readings(variant))
        ]
        ranked.sort(key=lambda item: item[0])
        return [(variant, reading) for _, variant, reading in ranked]


def plain(name: str) -> str:
    """A name from outside as plotly shows it: plotly reads some HTML in every text."""
    return html.escape(name, quote=False)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the dotted path that all of them share."""
    if len(names) < 2:
        return list(names)
    paths = [name.split(".") for name in names]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(path[shared:]) for path in paths]


def shortened(name: str, length: int = 18) -> str:
    """A name that fits on an axis: what is in the middle gives way, as both ends tell apart."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def merged_names(lists: Sequence[Sequence[str]]) -> list[str] | None:
    """One order for the names of several networks, so that equal layers stand at one place.

    Args:
        lists: the names of each network, in execution order.

    Returns:
        All names, those of one list in its order; None where less than half of a list's names are
        in the longest, or a name comes twice, or two lists disagree about the order.
    """
    distinct = sorted(dict.fromkeys(tuple(names) for names in lists), key=lambda n: -len(n))
    order = list(distinct[0])
    base = set(order)
    for names in distinct:
        if len(set(names)) < len(names) or 2 * len(base & set(names)) < len(names):
            return None
        at = {name: i for i, name in enumerate(order)}
        known = [at[name] for name in names if name in at]
        if known != sorted(known):
            return None
        previous = -1
        for name in names:
            if name in order:
                previous = order.index(name)
            else:
                previous += 1
                order.insert(previous, name)
    return order


def titled(text: str, standoff: int = 6) -> dict[str, Any]:
    """The title of an axis."""
    return {"title": {"text": text, "standoff": standoff}}


def margins(left: int, right: int, top: int, bottom: int) -> dict[str, int]:
    """Room around a panel, in pixels."""
    return {"l": left, "r": right, "t": top, "b": bottom}


def row_axis(rows: Sequence[tuple[Variant, Any]]) -> dict[str, Any]:
    """The y axis of a chart with one row per variant, the first on top."""
    few = len(rows) <= 60
    names = [plain(v.label) for v, _ in rows]
    ticks = {"tickvals": list(range(len(rows))), "ticktext": names} if few else {}
    return {"autorange": "reversed", "automargin": True, "showticklabels": few, **ticks}


def row_labels(rows: Sequence[tuple[Variant, Any]]) -> dict[str, list[Any]]:
    """For the page: which variant each row is, with its names for wide and narrow screens."""
    return {
        "rows": [v.index for v, _ in rows],
        "labels": [plain(v.label) for v, _ in rows],
        "short": [plain(v.short) for v, _ in rows],
    }


def cell_title(drawing: Drawing, variant: Variant, reading: Reading) -> str:
    """The variant, with its seed where there are several; nothing where there is only one cell."""
    if len(drawing.tables.readings) == 1:
        return ""
    seeded = drawing.tables.n_seeds > 1
    return f"{variant.label} · seed {reading.result.seed}" if seeded else variant.label


def power_of_ten(exponent: float) -> str:
    """A decade as people write it: ``10⁻⁹``."""
    digits = str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"
