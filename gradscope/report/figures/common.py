"""What all figures share: what they are drawn from, and how names are written on them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscope.report.scheme import Scheme
from gradscope.study.effects import Effect
from gradscope.study.reading import Reading
from gradscope.study.tables import Tables, Variant

SEQUENTIAL = "Viridis"
SHARES = "Blues"


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


def clipped(name: str, length: int = 18) -> str:
    """A name that fits on an axis; the end tells more than the beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


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


def cell_title(variant: Variant, reading: Reading, *, seeded: bool) -> str:
    """The variant, with its seed where there are several."""
    return f"{variant.label} · seed {reading.result.seed}" if seeded else variant.label
