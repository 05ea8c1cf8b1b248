"""Figures of the effects: main effects and two-way interactions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.report.chart import PALETTE, Chart, Panel
from gradscope.report.figures.common import Drawing, margins, plain
from gradscope.study import labels
from gradscope.study.effect import Effect
from gradscope.study.metrics import metrics_in


def main_effects(drawing: Drawing) -> Chart | None:
    """Main effects of all factors, one panel per metric."""
    return _effect_chart(
        drawing,
        [e for e in drawing.effects if e.is_main],
        "effects",
        "Main effects",
        "Each mark compares one level of a factor with its first level in the grid: the mean "
        "difference over all pairs of variants that differ in nothing else.",
    )


def interactions(drawing: Drawing) -> Chart | None:
    """Largest two-way interactions, one panel per metric."""
    chosen: list[Effect] = []
    for metric in metrics_in(drawing.effects):
        of_metric = [e for e in drawing.effects if not e.is_main and e.metric == metric.key]
        of_metric.sort(key=lambda e: -abs(e.estimate))
        chosen += of_metric[:10]
    return _effect_chart(
        drawing,
        chosen,
        "interactions",
        "Two-way interactions",
        "By how much the effect of one factor changes when a second one changes: zero where they "
        "simply add up. The ten largest on each metric.",
    )


def _effect_chart(
    drawing: Drawing, found: Sequence[Effect], key: str, title: str, caption: str
) -> Chart | None:
    panels = []
    for metric in metrics_in(found):
        of_metric = [e for e in found if e.metric == metric.key]
        if of_metric:
            unit = f" ({metric.unit})" if metric.unit else ""
            panels.append(_effect_panel(of_metric, f"{metric.title}{unit}"))
    if not panels:
        return None
    seeds = drawing.tables.n_seeds
    ends = (
        "Bars are 95 % intervals over seeds; filled marks differ from zero after Holm's correction."
        if seeds > 1
        else "There is one seed, so there are no intervals: the thin line spans the smallest to "
        "the largest difference among the pairs, which is not an uncertainty."
    )
    return Chart(
        key, title, f"{caption} {ends}", tuple(panels), table="effects",
        options={"effects": True},
    )  # fmt: skip


def effect_label(effect: Effect) -> str:
    """``skip: no vs yes`` for a main effect; both levels for an interaction."""
    if effect.is_main:
        return f"{effect.factor}: {effect.level} vs {effect.reference}"
    return f"{effect.factor} {effect.level} {labels.TIMES} {effect.by} {effect.by_level}"


def _effect_panel(found: Sequence[Effect], title: str) -> Panel:
    shown = list(reversed(found))
    y = list(range(len(shown)))
    measured = any(math.isfinite(e.low) for e in shown)
    ends = [_ends(e, measured=measured) for e in shown]
    marks = {
        "type": "scatter",
        "x": [e.estimate for e in shown],
        "y": y,
        "text": [plain(effect_label(e)) for e in shown],
        "customdata": [_effect_words(e) for e in shown],
        "mode": "markers",
        "marker": {
            "size": 10,
            "color": PALETTE[0],
            "symbol": ["circle" if e.is_certain else "circle-open" for e in shown],
            "line": {"width": 2},
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - e.estimate for e, (_, high) in zip(shown, ends, strict=True)],
            "arrayminus": [e.estimate - low for e, (low, _) in zip(shown, ends, strict=True)],
            "thickness": 2.5 if measured else 0.8,
            "width": 5 if measured else 0,
            "color": PALETTE[0],
        },
        "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        "meta": {"c": 0, "effects": [_identity(e) for e in shown]},
    }
    names = [plain(_middle_clipped(effect_label(e))) for e in shown]
    span = [-0.6, len(shown) - 0.4]
    zero = {"type": "line", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
    layout = {
        "xaxis": {"nticks": 5},
        "yaxis": {"tickvals": y, "ticktext": names, "range": span, "automargin": True},
        "margin": margins(8, 14, 4, 36),
        "showlegend": False,
        "shapes": [zero | {"line": {"width": 1, "color": "#888888"}}],
    }
    return Panel(title, (marks,), layout, f"{title}: {labels.count(len(shown), 'comparison')}")


def _middle_clipped(name: str, half: int = 20) -> str:
    return name if len(name) <= 2 * half + 1 else f"{name[:half]}…{name[-half:]}"


def _identity(e: Effect) -> list[str]:
    """By which the page finds the comparison again, to recompute it under a filter."""
    return [e.metric, e.factor, e.level, e.reference, e.by, e.by_level, e.by_reference]


def _ends(effect: Effect, *, measured: bool) -> tuple[float, float]:
    if not measured:
        return effect.smallest, effect.largest
    known = math.isfinite(effect.low)
    return (effect.low, effect.high) if known else (effect.estimate, effect.estimate)


def _effect_words(effect: Effect) -> str:
    words = f"{labels.signed(effect.estimate)} over {labels.count(effect.n_pairs, 'comparison')}"
    if math.isfinite(effect.low):
        words += f"; 95 % interval {labels.signed(effect.low)} to {labels.signed(effect.high)}"
        return f"{words}; p = {labels.number(effect.p_holm, 2)} (Holm)"
    return f"{words}, from {labels.signed(effect.smallest)} to {labels.signed(effect.largest)}"
