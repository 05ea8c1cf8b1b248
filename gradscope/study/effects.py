"""What each factor does: comparisons of cells that differ in nothing else.

A main effect of a factor is the mean, over all pairs of variants that differ in this factor alone,
of the difference of their outcomes. A two-way interaction is the mean, over all such quadruples, of
the difference between the effect of one factor at two levels of the other. In a full factorial
these are the estimates of least squares; in a design with holes they still compare like with like.

Each difference is taken within a seed, so that what a seed does to all cells alike falls out. The
spread of a difference over its seeds gives its variance, whatever that of the others, and
Welch-Satterthwaite degrees of freedom give the interval of their mean. With one seed there is no
such spread and so no interval: the differences over the other factors' levels are no substitute.

Losses are compared by their logarithm, so that one that ran away does not outweigh all others. An
estimate that would turn its sign or lose half its size without one pair is said to be carried by
it, with the name of the variant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.study.effect import Effect
from gradscope.study.estimates import Floats, estimate, holm
from gradscope.study.metrics import Metric, metrics_of
from gradscope.study.tables import Factor, Tables

Levels = tuple[int, ...]
Outcomes = Mapping[Levels, Mapping[int, float]]
"""Levels of a variant -> seed -> outcome."""


def effects(tables: Tables) -> tuple[Effect, ...]:
    """Main effects and two-way interactions of all factors on all metrics.

    Args:
        tables: of a study; cells without the outcome are left out.

    Returns:
        Those comparisons that the study allows, metric by metric, main effects first.
    """
    found: list[Effect] = []
    rows = tables.cell_rows
    for metric in metrics_of(tables):
        outcomes = _outcomes(tables, rows, metric)
        labels = {variant.levels: variant.label for variant in tables.variants}
        of_metric = [*_main(tables.factors, outcomes), *_interactions(tables.factors, outcomes)]
        named = [
            replace(e, metric=metric.key, **_carrier(p, outcomes, labels)) for e, p in of_metric
        ]
        found += _corrected(named)
    return tuple(found)


def _outcomes(tables: Tables, rows: Sequence[dict[str, Any]], metric: Metric) -> Outcomes:
    found: dict[Levels, dict[int, float]] = {}
    for variant in tables.variants:
        values = {int(rows[i]["seed"]): float(metric.of(rows[i])) for i in variant.cells}
        known = {seed: value for seed, value in values.items() if math.isfinite(value)}
        if known:
            found[variant.levels] = known
    return found


def _moved(levels: Levels, at: int, to: int) -> Levels:
    return (*levels[:at], to, *levels[at + 1 :])


@dataclass(frozen=True)
class _Pair:
    """Two variants that differ in one factor, or four that differ in two."""

    terms: tuple[Levels, ...]
    differences: Floats
    """One per seed that all of them have."""


def _main(
    factors: Sequence[Factor], outcomes: Outcomes
) -> Iterable[tuple[Effect, Sequence[_Pair]]]:
    for f, factor in enumerate(factors):
        for level in range(1, len(factor.levels)):
            pairs = _pairs(outcomes, {f: level}, (1, -1))
            if pairs:
                means = _means(outcomes, f, level)
                effect = Effect(
                    "",
                    factor.name,
                    factor.levels[level],
                    factor.levels[0],
                    level_mean=means[0],
                    reference_mean=means[1],
                    **estimate([pair.differences for pair in pairs]),
                )
                yield effect, pairs


def _pairs(outcomes: Outcomes, at: Mapping[int, int], signs: Sequence[int]) -> list[_Pair]:
    """All pairs, or quadruples, whose first member has these levels of these factors."""
    found = []
    for levels in outcomes:
        if any(levels[f] != level for f, level in at.items()):
            continue
        terms = [levels]
        for f in at:
            terms += [_moved(term, f, 0) for term in terms]
        if all(term in outcomes for term in terms):
            differences = _differences(outcomes, terms, signs)
            if differences.size:
                found.append(_Pair(tuple(terms), differences))
    return found


def _means(outcomes: Outcomes, f: int, level: int) -> tuple[float, float]:
    """Mean outcome at the level and at the reference, over the seeds and variants of the pairs."""
    at, reference = [], []
    for levels, values in outcomes.items():
        other = outcomes.get(_moved(levels, f, 0), {})
        shared = values.keys() & other.keys()
        if levels[f] == level and shared:
            at.append(float(np.mean([values[s] for s in shared])))
            reference.append(float(np.mean([other[s] for s in shared])))
    return float(np.mean(at)), float(np.mean(reference))


def _interactions(
    factors: Sequence[Factor], outcomes: Outcomes
) -> Iterable[tuple[Effect, Sequence[_Pair]]]:
    for f, g in itertools.combinations(range(len(factors)), 2):
        for level in range(1, len(factors[f].levels)):
            for by_level in range(1, len(factors[g].levels)):
                pairs = _pairs(outcomes, {f: level, g: by_level}, (1, -1, -1, 1))
                if pairs:
                    effect = Effect(
                        "",
                        factors[f].name,
                        factors[f].levels[level],
                        factors[f].levels[0],
                        factors[g].name,
                        factors[g].levels[by_level],
                        factors[g].levels[0],
                        **estimate([pair.differences for pair in pairs]),
                    )
                    yield effect, pairs


def _differences(outcomes: Outcomes, terms: Sequence[Levels], signs: Sequence[int]) -> Floats:
    """The signed sum of the terms for each seed that all of them have."""
    seeds = sorted(set.intersection(*(set(outcomes[term]) for term in terms)))
    signed = zip(terms, signs, strict=True)
    total = np.zeros(len(seeds))
    for term, sign in signed:
        total += sign * np.array([outcomes[term][seed] for seed in seeds])
    return total


def _carrier(
    pairs: Sequence[_Pair], outcomes: Outcomes, labels: Mapping[Levels, str]
) -> dict[str, Any]:
    """Which variant carries an estimate, and what the estimate is without its pair; else nothing.

    With two pairs nobody can tell which of them is the odd one.
    """
    if len(pairs) < 3:
        return {}
    means = np.array([pair.differences.mean() for pair in pairs])
    whole = means.mean()
    rest = (means.sum() - means) / (len(means) - 1)
    odd = int(np.abs(rest - whole).argmax())
    if np.isclose(rest[odd], whole, rtol=1e-9, atol=1e-12):
        return {}
    if rest[odd] * whole > 0 and abs(rest[odd]) >= abs(whole) / 2:
        return {}
    at = {term: float(np.mean(list(outcomes[term].values()))) for p in pairs for term in p.terms}
    centres = [np.median([at[pair.terms[k]] for pair in pairs]) for k in range(len(pairs[0].terms))]
    away = [abs(at[t] - centre) for t, centre in zip(pairs[odd].terms, centres, strict=True)]
    variant = pairs[odd].terms[int(np.argmax(away))]
    return {"carried_by": labels[variant], "without": float(rest[odd])}


def _corrected(found: list[Effect]) -> list[Effect]:
    """The same effects with p corrected by Holm's method over all of them that have one."""
    tested = [i for i, e in enumerate(found) if math.isfinite(e.p)]
    corrected = holm([found[i].p for i in tested])
    for i, p in zip(tested, corrected, strict=True):
        found[i] = replace(found[i], p_holm=p)
    return found
