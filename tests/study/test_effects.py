"""Effects against least squares, against their definition, and their intervals against chance."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.multitest import multipletests

from gradscope.study import tables
from gradscope.study.effects import effects

FACTORS = {"a": (0, 1), "b": ("x", "y", "z"), "c": (False, True)}
"""Those of the studies that the fixture makes."""


def accuracy_effects(study):
    """The effects on accuracy by what they compare."""
    found = effects(tables.read(study))
    return {(e.factor, e.level, e.by, e.by_level): e for e in found if e.metric == "accuracy"}


def test_effects_of_a_full_factorial_are_those_of_least_squares(made):
    """Main effects and interactions equal contrasts of an ordinary least-squares fit."""
    rng = np.random.default_rng(0)
    noise = {}

    def value(point, seed):
        key = (*point.values(), seed)
        return noise.setdefault(key, 0.5 + 0.05 * rng.standard_normal() + 0.1 * point["a"])

    study = made.study(value)
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


def test_an_additive_study_has_its_effects_and_no_interaction(made):
    """What was put in comes out, in points; what seeds do to all cells alike falls out."""
    found = accuracy_effects(
        made.study(lambda p, seed: 0.3 + 0.2 * p["a"] - 0.1 * p["c"] + 0.03 * seed)
    )
    assert found["a", "1", "", ""].estimate == pytest.approx(20)
    assert found["c", "yes", "", ""].estimate == pytest.approx(-10)
    assert found["b", "y", "", ""].estimate == pytest.approx(0)
    assert found["a", "1", "c", "yes"].estimate == pytest.approx(0)
    assert found["a", "1", "", ""].n_pairs == 6


def test_an_interaction_is_a_difference_of_effects(made):
    """`a` gives 30 points with c and 10 without: the interaction is 20."""
    found = accuracy_effects(made.study(lambda p, seed: 0.2 + (0.3 if p["c"] else 0.1) * p["a"]))
    assert found["a", "1", "c", "yes"].estimate == pytest.approx(20)
    assert found["a", "1", "", ""].smallest == pytest.approx(10)
    assert found["a", "1", "", ""].largest == pytest.approx(30)


def test_one_seed_gives_estimates_without_intervals(made):
    """No interval and no p-value pretends to know the spread over seeds."""
    found = accuracy_effects(made.study(lambda p, seed: 0.3 + 0.2 * p["a"], seeds=(0,)))
    assert found["a", "1", "", ""].estimate == pytest.approx(20)
    assert all(math.isnan(v) for e in found.values() for v in (e.low, e.high, e.p, e.p_holm))
    assert not any(e.is_certain for e in found.values())


def test_only_like_is_compared_with_like(made):
    """In a study with holes a pair needs both its members; a third factor does not leak in."""
    hole = {"a": 1, "b": "x", "c": False}
    found = accuracy_effects(
        made.study(
            lambda p, seed: 0.2 + 0.1 * p["a"] + (0.5 if p["b"] == "x" else 0),
            keep=lambda point, seed: point != hole,
        )
    )
    assert found["a", "1", "", ""].n_pairs == 5
    assert found["a", "1", "", ""].estimate == pytest.approx(10)


def test_effects_are_corrected_together(made):
    """Main effects and interactions on one metric count as one family."""
    rng = np.random.default_rng(4)
    found = accuracy_effects(made.study(lambda p, s: 0.5 + 0.1 * p["a"] + 0.02 * rng.normal()))
    p = [e.p for e in found.values()]
    assert [e.p_holm for e in found.values()] == pytest.approx(multipletests(p, method="holm")[1])


def test_one_variant_that_carries_an_effect_is_named(made):
    """One cell ran away: its variant is named, with the mean over all other pairs beside."""

    def loss(point, seed):
        return 30.0 if point == {"a": 1, "b": "y", "c": True} else 1.0 + 0.1 * point["c"]

    study = made.study(lambda p, s: 0.5, loss=loss)
    found = {
        (e.factor, e.level, e.by): e for e in effects(tables.read(study)) if e.metric == "loss"
    }
    a = found["a", "1", ""]
    assert a.carried_by == "a 1 \u00b7 b y \u00b7 c yes"
    assert a.without == pytest.approx(0.0, abs=1e-12)
    assert a.estimate == pytest.approx(math.log10(30 / 1.1) / 6)
    even = made.study(lambda p, s: 0.5, loss=lambda p, s: 2.0 if p["a"] else 1.0)
    assert not any(e.carried_by for e in effects(tables.read(even)) if e.factor == "a" and not e.by)


def test_a_trained_study_rests_on_no_outlier(made):
    """The cell whose loss is 36.1 carries the effects on the loss, and is named with each."""
    found = effects(tables.read(made.trained()))
    main = {e.factor: e for e in found if e.metric == "loss" and e.is_main}
    outlier = "skip yes \u00b7 batch_norm no \u00b7 init kaiming \u00b7 depth 64 \u00b7 lr 2e-5"
    for factor in ("batch_norm", "init", "depth", "lr"):
        assert main[factor].carried_by == outlier
        assert abs(main[factor].without) < abs(main[factor].estimate) / 2
    skip = [e for e in found if e.metric == "accuracy" and e.factor == "skip" and e.is_main]
    assert not skip[0].carried_by
    means = pd.DataFrame(
        [r.factors | {"y": r.history.epochs[-1].val_accuracy} for r in made.trained().results]
    )
    means = 100 * means.groupby("skip")["y"].mean()  # the study is balanced
    assert skip[0].estimate == pytest.approx(means["no"] - means["yes"])


def simulated(made, draw, n):
    """Effects on accuracy of so many studies of four variants with four seeds."""
    factors = {"a": (0, 1), "b": (0, 1)}
    read = tables.read(made.study(lambda p, s: 0.5, factors=factors, seeds=(0, 1, 2, 3)))
    points = [r.result.factors for r in read.readings]
    read.frames["cells"]["log10_loss"] = math.nan
    for _ in range(n):
        read.frames["cells"]["val_accuracy"] = draw(points)
        yield [e for e in effects(read) if e.metric == "accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_intervals_hold_what_they_promise(made, spread):
    """95 % intervals hold known effects in 93 to 97 % of 1,000 studies, with unequal noise too."""
    rng = np.random.default_rng(2)
    truth = {"a": 20.0, "b": 0.0}

    def draw(points):
        return [
            (sum(truth[f] * p[f] for f in truth) + rng.normal(0, 4 * (1 + spread * p["b"]))) / 100
            for p in points
        ]

    held = dict.fromkeys(truth, 0)
    for found in simulated(made, draw, 1000):
        for effect in found:
            if effect.is_main:
                held[effect.factor] += effect.low <= truth[effect.factor] <= effect.high
    assert all(930 <= n <= 970 for n in held.values()), held


@pytest.mark.slow
def test_correction_keeps_noise_quiet(made):
    """At most 5 % of 1,000 studies of pure noise claim any effect after the correction."""
    rng = np.random.default_rng(3)
    claims = 0
    for found in simulated(made, lambda points: rng.normal(0.5, 0.05, len(points)), 1000):
        claims += any(e.is_certain for e in found)
    assert claims <= 50
