"""What a report says of effects: the largest, who carries them, what the gradient explains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradscope.study import labels
from gradscope.study.effect import Effect
from gradscope.study.metrics import METRICS, Metric, metrics_in
from gradscope.study.outcome import NOT_LEARNING
from gradscope.study.power import seeds_needed
from gradscope.study.tables import Tables


def strongest(tables: Tables, found: Sequence[Effect], key: str) -> str:
    """The factor that moves one metric most, and how sure that is; none that one variant carries.

    Args:
        tables: of the study.
        found: its effects.
        key: of the metric: ``drift`` or ``accuracy``.
    """
    metric = next(m for m in METRICS if m.key == key)
    main = [e for e in found if e.metric == key and e.is_main]
    if not main:
        return ""
    if tables.n_seeds > 1 and not any(e.is_certain for e in main):
        top = max(main, key=lambda e: abs(e.estimate))
        return (
            f"No factor's effect on the {metric.title.lower()} can be told from the spread over "
            f"seeds; the largest estimate is {_estimate(top, metric)} for {_short(top)}."
        )
    if tables.n_seeds > 1:
        main = [e for e in main if e.is_certain]
    sound = [e for e in main if not e.carried_by]
    top = max(sound or main, key=lambda e: abs(e.estimate))
    if top.carried_by:
        return f"{metric.title}: {_carried(top, metric)}."
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


def _short(effect: Effect) -> str:
    if effect.is_main:
        return f"{effect.factor} {effect.level} against {effect.reference}"
    return f"{effect.factor} {effect.level} with {effect.by} {effect.by_level}"


def _carried(effect: Effect, metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return (
        f"{_short(effect)} {labels.signed(effect.estimate)}{unit} rests on one variant "
        f"({effect.carried_by}): without it {labels.signed(effect.without)}"
    )


def effect_sentences(found: Iterable[Effect]) -> tuple[str, ...]:
    """For each metric, what can be said of its main effects and interactions."""
    effects = list(found)
    sentences: list[str] = []
    for metric in metrics_in(effects):
        of_metric = [e for e in effects if e.metric == metric.key]
        if not of_metric or metric.key == "slope":
            continue
        seeded = any(math.isfinite(e.p_holm) for e in of_metric)
        sentences.append((_over_seeds if seeded else _one_seed)(metric, of_metric))
    return tuple(sentences)


def _over_seeds(metric: Metric, found: Sequence[Effect]) -> str:
    """What differs from zero after correction; where nothing does, what would settle it."""
    unit = f" {metric.unit}" if metric.unit else ""
    certain = sorted((e for e in found if e.is_certain), key=lambda e: -abs(e.estimate))
    if not certain:
        hidden = f"{metric.title}: no effect stands out from the spread over seeds."
        return f"{hidden} {_settling(metric, found)}"
    sound = [e for e in certain if not e.carried_by] or certain
    words = [f"{_short(e)} {labels.signed(e.estimate)}{unit}" for e in sound]
    sentence = (
        f"{metric.title}: {len(certain)} of {len(found)} comparisons differ from zero after "
        f"correction, the largest {labels.listed(words, 4)}."
    )
    return sentence + _carriers([e for e in certain if e.is_main], metric)


def _settling(metric: Metric, found: Sequence[Effect]) -> str:
    """How many seeds would tell the main effect that needs the fewest from zero."""
    tested = sum(math.isfinite(e.p) for e in found)
    needed = [(seeds_needed(e, tested), e) for e in found if e.is_main]
    known = [(n, e) for n, e in needed if n is not None]
    if not known:
        return "More than a thousand seeds would be needed for any of them."
    n, effect = min(known, key=lambda item: item[0])
    return (
        f"The clearest, {_short(effect)} {_estimate(effect, metric)}, would be told from zero with "
        f"{n} seeds per variant in four of five such studies, if it is as large as it looks here."
    )


def _one_seed(metric: Metric, found: Sequence[Effect]) -> str:
    """The largest differences that no single variant carries, and those that one does."""
    unit = f" {metric.unit}" if metric.unit else ""
    main = sorted((e for e in found if e.is_main), key=lambda e: -abs(e.estimate))
    sound = [e for e in main if not e.carried_by][:3]
    words = [f"{_short(e)} {labels.signed(e.estimate)}{unit}" for e in sound]
    if not sound:
        return f"{metric.title}: no difference rests on more than one variant." + _carriers(
            main, metric
        )
    sentence = f"{metric.title}: the largest differences are {labels.listed(words)}."
    mixed = [e for e in sound if e.smallest < 0 < e.largest]
    if mixed:
        names = labels.listed(dict.fromkeys(e.factor for e in mixed))
        sentence += f" The sign of that of {names} depends on the other factors."
    return sentence + _carriers(main, metric)


def _carriers(main: Sequence[Effect], metric: Metric) -> str:
    """Which large effects rest on one variant, by that variant."""
    largest = max((abs(e.estimate) for e in main), default=0.0)
    by_variant: dict[str, list[Effect]] = {}
    for effect in main:
        if effect.carried_by and abs(effect.estimate) >= largest / 2:
            by_variant.setdefault(effect.carried_by, []).append(effect)
    sentences = []
    for variant, own in by_variant.items():
        words = [
            f"{_short(e)} {labels.signed(e.estimate)}, without it {labels.signed(e.without)}"
            for e in own
        ]
        unit = f" (in {metric.unit})" if metric.unit else ""
        differ = "difference rests" if len(own) == 1 else "differences rest"
        sentences.append(f" {len(own)} {differ} on {variant}{unit}: {'; '.join(words)}.")
    return "".join(sentences)


def explained(tables: Tables, found: Sequence[Effect]) -> tuple[str, ...]:
    """Where the gradient does not explain what came out: cells, and the factor behind most of it.

    The gradient is taken to explain a difference in accuracy where the worse level has the larger
    share of cells with an unhealthy gradient.
    """
    cells = [row for row in tables.cell_rows if row["verdict"]]
    idle = [row for row in cells if row["status"] == NOT_LEARNING]
    sentences = []
    if idle:
        sound = sum(row["verdict"] == "healthy" for row in idle)
        of = f"Of the {labels.count(len(idle), 'cell')} that do not learn, "
        if len(idle) == 1:
            of = "The one cell that does not learn has "
            words = "a healthy gradient" if sound else "an unhealthy gradient"
            sentences.append(f"{of}{words}{_not_why(sound)}.")
        else:
            have = "has" if len(idle) - sound == 1 else "have"
            sentences.append(
                f"{of}{len(idle) - sound} {have} an unhealthy gradient and {sound} a healthy one"
                f"{_not_why(sound)}."
            )
    main = [e for e in found if e.metric == "accuracy" and e.is_main and not e.carried_by]
    if tables.n_seeds > 1:
        main = [e for e in main if e.is_certain]
    for effect in sorted(main, key=lambda e: -abs(e.estimate))[:2]:
        worse, better = effect.level, effect.reference
        if effect.estimate > 0:
            worse, better = better, worse
        sick = {level: _unhealthy(cells, effect.factor, level) for level in (worse, better)}
        if all(math.isfinite(s) for s in sick.values()) and sick[worse] <= sick[better]:
            sentences.append(
                f"The gradient does not explain the difference that {effect.factor} makes to the "
                f"accuracy: with {worse}, which is worse by {labels.number(abs(effect.estimate))} "
                f"points, it is unhealthy in {labels.percent(sick[worse], 0)} of the cells, with "
                f"{better} in {labels.percent(sick[better], 0)}."
            )
    return tuple(sentences)


def _not_why(sound: int) -> str:
    return ": there the gradient does not explain it, look elsewhere" if sound else ""


def _unhealthy(cells: Sequence[dict[str, object]], factor: str, level: str) -> float:
    """Share of the judged cells at a level whose gradient is not healthy."""
    own = [row for row in cells if row[f"factor.{factor}"] == level]
    return sum(row["verdict"] != "healthy" for row in own) / len(own) if own else math.nan
