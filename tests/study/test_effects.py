"""Effects against least squares, against their definition, and their intervals against chance."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from gradscope.study import tables
from gradscope.study.effects import effects, estimate
from gradscope.study.results import CellResult, Epoch, History, Study

FACTORS = {"a": (0, 1), "b": ("x", "y", "z"), "c": (False, True)}


def study_of(value, *, factors=FACTORS, seeds=(0, 1, 2), keep=lambda point, seed: True):
    """A study without traces whose validation accuracy is what `value` says."""
    results = []
    for i, levels in enumerate(itertools.product(*factors.values())):
        point = dict(zip(factors, levels, strict=True))
        for seed in seeds:
            if keep(point, seed):
                epoch = Epoch(1, 10, 1.0, 0.5, 1.0, value(point, seed), (), 1.0)
                history = History((1.0,) * 10, (epoch,))
                results.append(CellResult(f"{i}-{seed}", point, seed, "done", {}, history))
    return Study("study", factors, tuple(results))


def accuracy_effects(study):
    """The effects on accuracy by what they compare."""
    found = effects(tables.read(study))
    return {(e.factor, e.level, e.by, e.by_level): e for e in found if e.metric == "accuracy"}


def test_effects_of_a_full_factorial_are_those_of_least_squares():
    """Main effects and interactions equal contrasts of an ordinary least-squares fit."""
    rng = np.random.default_rng(0)
    noise = {}

    def value(point, seed):
        key = (*point.values(), seed)
        return noise.setdefault(key, 0.5 + 0.05 * rng.standard_normal() + 0.1 * point["a"])

    study = study_of(value)
    found = accuracy_effects(study)
    frame = pd.DataFrame(
        [r.factors | {"y": 100 * r.history.epochs[-1].val_accuracy} for r in study.results]
    )
    fit = smf.ols("y ~ C(a, Sum) * C(b, Sum) * C(c, Sum)", frame).fit()
    grid = pd.DataFrame(itertools.product(*FACTORS.values()), columns=list(FACTORS))
    grid["y"] = fit.predict(grid)
    means = grid.groupby("a")["y"].mean()
    assert found["a", "1", "", ""].estimate == pytest.approx(means[1] - means[0])
    means = grid.groupby("b")["y"].mean()
    assert found["b", "z", "", ""].estimate == pytest.approx(means["z"] - means["x"])
    both = grid.groupby(["a", "b"])["y"].mean()
    expected = both[1, "y"] - both[0, "y"] - both[1, "x"] + both[0, "x"]
    assert found["a", "1", "b", "y"].estimate == pytest.approx(expected)
    assert len(found) == 4 + 2 + 1 + 2


def test_an_additive_study_has_its_effects_and_no_interaction():
    """What was put in comes out, in points; what seeds do to all cells alike falls out."""
    found = accuracy_effects(
        study_of(lambda p, seed: 0.3 + 0.2 * p["a"] - 0.1 * p["c"] + 0.03 * seed)
    )
    assert found["a", "1", "", ""].estimate == pytest.approx(20)
    assert found["c", "yes", "", ""].estimate == pytest.approx(-10)
    assert found["b", "y", "", ""].estimate == pytest.approx(0)
    assert found["a", "1", "c", "yes"].estimate == pytest.approx(0)
    assert found["a", "1", "", ""].n_pairs == 6


def test_an_interaction_is_a_difference_of_effects():
    """`a` gives 30 points with c and 10 without: the interaction is 20."""
    found = accuracy_effects(study_of(lambda p, seed: 0.2 + (0.3 if p["c"] else 0.1) * p["a"]))
    assert found["a", "1", "c", "yes"].estimate == pytest.approx(20)
    assert found["a", "1", "", ""].smallest == pytest.approx(10)
    assert found["a", "1", "", ""].largest == pytest.approx(30)


def test_one_seed_gives_estimates_without_intervals():
    """No interval and no p-value pretends to know the spread over seeds."""
    found = accuracy_effects(study_of(lambda p, seed: 0.3 + 0.2 * p["a"], seeds=(0,)))
    assert found["a", "1", "", ""].estimate == pytest.approx(20)
    assert all(math.isnan(v) for e in found.values() for v in (e.low, e.high, e.p, e.p_holm))
    assert not any(e.is_certain for e in found.values())


def test_only_like_is_compared_with_like():
    """In a study with holes a pair needs both its members; a third factor does not leak in."""
    hole = {"a": 1, "b": "x", "c": False}
    found = accuracy_effects(
        study_of(
            lambda p, seed: 0.2 + 0.1 * p["a"] + (0.5 if p["b"] == "x" else 0),
            keep=lambda point, seed: point != hole,
        )
    )
    assert found["a", "1", "", ""].n_pairs == 5
    assert found["a", "1", "", ""].estimate == pytest.approx(10)


def test_interval_of_a_single_pair_is_the_paired_t_interval():
    """One pair of variants over seeds: scipy's interval and test of the paired differences."""
    rng = np.random.default_rng(1)
    differences = rng.normal(1.0, 1.0, 7)
    found = estimate([differences])
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(test.pvalue)


def test_intervals_hold_what_they_promise():
    """With very unequal spreads, 95 % intervals hold the truth in 93 % to 98.5 % of 2,000 draws."""
    rng = np.random.default_rng(2)
    scales = np.array([0.1, 0.1, 1.0, 5.0])
    held = 0
    for _ in range(2000):
        found = estimate([rng.normal(2.0, scale, 4) for scale in scales])
        held += found["low"] <= 2.0 <= found["high"]
    assert 0.93 < held / 2000 < 0.985


def test_correction_keeps_noise_quiet():
    """Of 40 studies of pure noise with three seeds, hardly more than 5 % claim any effect."""
    rng = np.random.default_rng(3)
    claims = 0
    study = study_of(lambda p, seed: 0.0, factors={"a": (0, 1), "b": (0, 1)})
    for _ in range(40):
        results = [
            dataclasses.replace(
                r,
                history=History(
                    (1.0,),
                    (dataclasses.replace(r.history.epochs[0], val_accuracy=rng.normal()),),
                ),
            )
            for r in study.results
        ]
        found = accuracy_effects(dataclasses.replace(study, results=tuple(results)))
        claims += any(e.is_certain for e in found.values())
    assert claims <= 5  # 1 % of fair draws from 5 % have more
