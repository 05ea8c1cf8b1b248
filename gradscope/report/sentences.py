"""The sentences of a report: generated from its numbers, and saying no more than these support."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from gradscope.study import labels
from gradscope.study.effects import METRICS, Effect, Metric, metrics_in
from gradscope.study.objectives import PREFIX
from gradscope.study.tables import Tables

VERDICTS = {
    "healthy": "healthy",
    "vanishing": "vanishing",
    "exploding": "exploding",
    "dead": "dead",
    "non-finite": "non-finite",
    "disconnected": "disconnected",
    "inconclusive": "inconclusive",
}
"""Verdict of the diagnosis -> how it stands after "is" or "are"."""


def opening(tables: Tables, found: Sequence[Effect]) -> tuple[str, ...]:
    """What the study found, in a few sentences with numbers.

    Args:
        tables: of the study.
        found: its effects.

    Returns:
        Sentences, not escaped; the first says what was run and how its gradients are.
    """
    sentences = [health(tables), *extremes(tables)]
    for key in ("drift", "accuracy"):
        sentence = strongest(tables, found, key)
        if sentence:
            sentences.append(sentence)
    wanted = [e for e in found if e.metric.startswith(PREFIX)]
    sentences += effect_sentences(wanted)
    if not wanted and not any(e.metric == "accuracy" for e in found):
        sentences += best(tables)
    return tuple(s for s in sentences if s)


def health(tables: Tables) -> str:
    """How many cells have which verdict."""
    verdicts = Counter(r.verdict for r in tables.readings if r.verdict)
    judged = sum(verdicts.values())
    total = len(tables.readings)
    if not judged:
        return f"None of the {labels.count(total, 'cell')} has a recorded gradient yet."
    if total == 1:
        return f"The gradient is {VERDICTS.get(next(iter(verdicts)), next(iter(verdicts)))}."
    if len(verdicts) == 1 and judged == total:
        verdict = next(iter(verdicts))
        return f"All {total} cells are {VERDICTS.get(verdict, verdict)}."
    parts = [
        f"{n} {'is' if n == 1 else 'are'} {VERDICTS.get(v, v)}" for v, n in verdicts.most_common()
    ]
    of = f"{judged} of {total} cells that have a gradient" if judged < total else f"{total} cells"
    return f"Of the {of}, {labels.listed(parts, 8)}."


def extremes(tables: Tables) -> list[str]:
    """The steepest and the flattest gradient."""
    known = [
        (variant, [r.flow.slope for r in map(tables.readings.__getitem__, variant.cells)
                   if r.flow is not None and math.isfinite(r.flow.slope)])
        for variant in tables.variants
    ]  # fmt: skip
    slopes = [(v, float(np.mean(s))) for v, s in known if s]
    if not slopes:
        return []
    steepest = max(slopes, key=lambda s: abs(s[1]))
    words = f"{_drift(steepest[1])} decades of gradient norm per block"
    if len(slopes) == 1:
        reading = tables.readings[slopes[0][0].cells[0]]
        assert reading.flow is not None
        flow = reading.flow
        through = labels.count(len(flow.blocks), "block")
        per_block = f"{_drift(flow.slope)} decades per block"
        return [f"On its way back through {through} it {per_block}; {_change(flow.total)}."]
    flattest = min(slopes, key=lambda s: abs(s[1]))
    flat = f"the flattest ({flattest[0].label}) {_drift(flattest[1])}"
    return [f"The steepest variant ({steepest[0].label}) {words}; {flat}."]


def _drift(slope: float) -> str:
    verb = "loses" if slope < 0 else "gains"
    return f"{verb} {labels.number(abs(slope), 2)}"


def _change(decades: float) -> str:
    if abs(decades) < 0.005:
        return "in all its norm stays as it was"
    verb = "shrinks" if decades < 0 else "grows"
    return f"in all its norm {verb} by {labels.number(abs(decades), 2)} decades"


def strongest(tables: Tables, found: Sequence[Effect], key: str) -> str:
    """The factor that moves one metric most, and how sure that is."""
    metric = next(m for m in METRICS if m.key == key)
    main = [e for e in found if e.metric == key and e.is_main]
    if not main:
        return ""
    top = max(main, key=lambda e: abs(e.estimate))
    if tables.n_seeds > 1 and not any(e.is_certain for e in main):
        return (
            f"No factor's effect on the {metric.title.lower()} can be told from the spread over "
            f"seeds; the largest estimate is {_estimate(top, metric)} for {_contrast(top)}."
        )
    if tables.n_seeds > 1:
        top = max((e for e in main if e.is_certain), key=lambda e: abs(e.estimate))
    if key == "drift":
        return _drift_sentence(top)
    direction = "gains" if top.estimate > 0 else "loses"
    return (
        f"Validation accuracy moves most with {top.factor}: {top.factor} {top.level} {direction} "
        f"{labels.number(abs(top.estimate), 3)} points against {top.reference}{_certainty(top)}."
    )


def _drift_sentence(top: Effect) -> str:
    calm, steep = sorted(
        ((top.level_mean, top.level), (top.reference_mean, top.reference)), key=lambda m: m[0]
    )
    saved = f", {labels.percent(1 - calm[0] / steep[0], 0)} less" if steep[0] > 0 else ""
    return (
        f"What moves the gradient most is {top.factor}: with {top.factor} {steep[1]} it decays or "
        f"grows by {labels.number(steep[0], 2)} decades per block, with {top.factor} {calm[1]} by "
        f"{labels.number(calm[0], 2)}{saved}{_certainty(top)}."
    )


def _certainty(effect: Effect) -> str:
    pairs = labels.count(effect.n_pairs, "pair")
    if math.isfinite(effect.low):
        return (
            f" (difference {labels.signed(effect.estimate)}, 95 % interval "
            f"{labels.signed(effect.low)} to {labels.signed(effect.high)} over seeds, {pairs})"
        )
    return f" (mean of {pairs} that differ in nothing else; one seed, so no interval)"


def _estimate(effect: Effect, metric: Metric) -> str:
    return f"{labels.signed(effect.estimate)} {metric.unit}".strip()


def _contrast(effect: Effect) -> str:
    return f"{effect.factor} {effect.level} against {effect.reference}"


def best(tables: Tables) -> list[str]:
    """The best validation accuracy, where factors cannot be compared."""
    known = [row for row in tables.cell_rows if math.isfinite(row["val_accuracy"])]
    if not known:
        return []
    top = max(known, key=lambda row: float(row["val_accuracy"]))
    where = f" ({top['variant']})" if len(known) > 1 else ""
    return [f"The best validation accuracy is {labels.percent(top['val_accuracy'])}{where}."]


def completeness(tables: Tables) -> tuple[str, ...]:
    """What is missing: cells that did not run, failed or diverged, seeds that are absent."""
    counts = Counter(str(r.result.status) for r in tables.readings)
    total = len(tables.readings)
    sentences = []
    words = {
        "pending": ("has not run yet", "have not run yet"),
        "running": ("is still running", "are still running"),
        "failed": ("failed", "failed"),
        "diverged": ("diverged", "diverged"),
    }
    missing = [f"{counts[s]} {one if counts[s] == 1 else many}" for s, (one, many) in words.items()
               if counts[s]]  # fmt: skip
    if missing:
        sentences.append(
            f"Of {labels.count(total, 'cell')}, {labels.listed(missing)}. Each comparison leaves "
            "out the cells that lack its number."
        )
    seeds = {len(v.cells) for v in tables.variants}
    if len(seeds) > 1:
        sentences.append(f"Variants have between {min(seeds)} and {max(seeds)} seeds.")
    broken = sum(bool(r.trace_error) for r in tables.readings)
    if broken:
        sentences.append(f"The trace of {labels.count(broken, 'cell')} could not be read.")
    return tuple(sentences)


def certainty(tables: Tables) -> str:
    """How sure the comparisons are."""
    if len(tables.variants) < 2:
        return ""
    n = tables.n_seeds
    if n < 2:
        return (
            "There is one seed per variant. Nothing here tells an effect from the luck of that "
            "seed: estimates come without intervals and without p-values."
        )
    return (
        f"Up to {n} seeds per variant. Intervals are 95 %, over seeds: differences are taken "
        "within a seed, with Welch-Satterthwaite degrees of freedom. p-values are corrected for "
        "all comparisons on the same metric (Holm)."
    )


def effect_sentences(found: Iterable[Effect]) -> tuple[str, ...]:
    """For each metric, what can be said of its main effects and interactions."""
    effects = list(found)
    sentences = []
    for metric in metrics_in(effects):
        of_metric = [e for e in effects if e.metric == metric.key]
        if not of_metric or metric.key == "slope":
            continue
        sentences.append(_metric_sentence(metric, of_metric))
    return tuple(sentences)


def _metric_sentence(metric: Metric, found: Sequence[Effect]) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    if any(math.isfinite(e.p_holm) for e in found):
        certain = sorted((e for e in found if e.is_certain), key=lambda e: -abs(e.estimate))
        if not certain:
            return f"{metric.title}: no effect stands out from the spread over seeds."
        words = [f"{_short(e)} {labels.signed(e.estimate)}{unit}" for e in certain]
        return (
            f"{metric.title}: {len(certain)} of {len(found)} comparisons differ from zero after "
            f"correction, the largest {labels.listed(words, 4)}."
        )
    main = sorted((e for e in found if e.is_main), key=lambda e: -abs(e.estimate))
    words = [f"{_short(e)} {labels.signed(e.estimate)}{unit}" for e in main[:3]]
    mixed = [e for e in main[:3] if e.smallest < 0 < e.largest]
    sentence = f"{metric.title}: the largest differences are {labels.listed(words)}."
    if mixed:
        names = labels.listed(dict.fromkeys(e.factor for e in mixed))
        sentence += f" The sign of that of {names} depends on the other factors."
    return sentence


def _short(effect: Effect) -> str:
    if effect.is_main:
        return f"{effect.factor} {effect.level} against {effect.reference}"
    return f"{effect.factor} {effect.level} with {effect.by} {effect.by_level}"
