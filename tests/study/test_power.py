"""How many seeds an effect needs, against statsmodels and against simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from gradscope.study.effect import Effect
from gradscope.study.estimates import estimate
from gradscope.study.power import seeds_needed


def effect_of(pairs, **changed):
    """An effect with the numbers of these pairs."""
    return Effect("accuracy", "a", "1", "0", **{**estimate(pairs), **changed})


@pytest.mark.parametrize(("shift", "tests"), [(0.4, 1), (1.0, 1), (0.7, 6)])
def test_one_pair_needs_what_the_paired_t_test_needs(shift, tests):
    """Statsmodels solves for the same number of paired differences."""
    differences = np.array([-1.0, 0.0, 1.0]) + shift
    expected = TTestPower().solve_power(shift / 1.0, alpha=0.05 / tests, power=0.8)
    assert seeds_needed(effect_of([differences]), tests) == math.ceil(expected)


def test_as_many_seeds_find_it_in_four_of_five_studies():
    """Studies of three pairs with the number of seeds that is told: 80 % of them see the effect."""
    rng = np.random.default_rng(0)
    seen = estimate([np.array([-0.2, 1.0, 2.2])] * 3)
    n = seeds_needed(Effect("accuracy", "a", "1", "0", **{**seen, "n_seeds": 3}))
    draws = [estimate([rng.normal(1.0, 1.2, n) for _ in range(3)])["p"] < 0.05 for _ in range(1500)]
    assert stats.binomtest(sum(draws), 1500, 0.8).pvalue > 1e-3 or np.mean(draws) > 0.8


def test_nothing_is_told_without_a_spread():
    """One seed, or no effect at all: no number."""
    assert seeds_needed(effect_of([np.array([1.0])])) is None
    assert seeds_needed(effect_of([np.array([-1.0, 1.0])])) is None
