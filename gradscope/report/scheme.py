"""Which factor becomes small multiples, which colour and which dash, for any number of factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.report.chart import DASHES, PALETTE, SYMBOLS, Key
from gradscope.study.effect import Effect
from gradscope.study.tables import Factor, Tables, Variant

MOST_PANELS = 16


@dataclass(frozen=True)
class Facet:
    """One panel of the small multiples."""

    title: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Scheme:
    """How variants are told apart in the figures that draw a line for each."""

    facets: tuple[Facet, ...]
    legend: tuple[Key, ...]
    colour_by: int = -1
    """Index of the factor that colour stands for; -1 for none."""
    dash_by: int = -1

    def style(self, variant: Variant) -> Key:
        """Colour, dash and symbol of one variant."""
        colour = variant.levels[self.colour_by] if self.colour_by >= 0 else 0
        dash = variant.levels[self.dash_by] if self.dash_by >= 0 else 0
        return Key(
            variant.label,
            max(colour, 0) % len(PALETTE),
            DASHES[max(dash, 0) % len(DASHES)],
            SYMBOLS[max(colour, 0) % len(SYMBOLS)],
        )


def choose(tables: Tables, found: Sequence[Effect]) -> Scheme:
    """Compare what matters most within a panel, and the rest from panel to panel.

    Args:
        tables: of the study.
        found: its effects; the factors that move the gradient most get colour and dash.

    Returns:
        A scheme with at most `MOST_PANELS` panels.
    """
    ranked = sorted(range(len(tables.factors)), key=lambda f: -_weight(tables.factors[f], found))
    colour_by = ranked[0] if ranked else -1
    dash_by = ranked[1] if len(ranked) > 1 else -1
    facet_by: list[int] = []
    panels = 1
    for f in ranked[2:]:
        if panels * len(tables.factors[f].levels) <= MOST_PANELS:
            facet_by.append(f)
            panels *= len(tables.factors[f].levels)
    facet_by.sort()
    return Scheme(
        _facets(tables, facet_by),
        _legend(tables.factors, colour_by, dash_by),
        colour_by,
        dash_by,
    )


def _weight(factor: Factor, found: Sequence[Effect]) -> float:
    """How much a factor moves the gradient, else the accuracy; factors of one figure alike."""
    for metric in ("drift", "accuracy", "loss"):
        sizes = [
            abs(e.estimate)
            for e in found
            if e.metric == metric and e.is_main and e.factor == factor.name
        ]
        if any(math.isfinite(size) for size in sizes):
            return max(size for size in sizes if math.isfinite(size))
    return 0.0


def _facets(tables: Tables, facet_by: Sequence[int]) -> tuple[Facet, ...]:
    groups: dict[tuple[int, ...], list[Variant]] = {}
    for variant in tables.variants:
        groups.setdefault(tuple(variant.levels[f] for f in facet_by), []).append(variant)
    facets = []
    for place, variants in sorted(groups.items()):
        words = [
            f"{tables.factors[f].name} {tables.factors[f].levels[level] if level >= 0 else '—'}"
            for f, level in zip(facet_by, place, strict=True)
        ]
        facets.append(Facet(" · ".join(words), tuple(variants)))
    return tuple(facets)


def _legend(factors: Sequence[Factor], colour_by: int, dash_by: int) -> tuple[Key, ...]:
    keys = []
    if colour_by >= 0:
        factor = factors[colour_by]
        for i, level in enumerate(factor.levels):
            symbol = SYMBOLS[i % len(SYMBOLS)]
            hides = {"f": colour_by, "l": i}
            keys.append(Key(f"{factor.name} {level}", i % len(PALETTE), "solid", symbol, hides))
    if dash_by >= 0:
        factor = factors[dash_by]
        for i, level in enumerate(factor.levels):
            dash = DASHES[i % len(DASHES)]
            keys.append(Key(f"{factor.name} {level}", -1, dash, hides={"f": dash_by, "l": i}))
    return tuple(keys)
