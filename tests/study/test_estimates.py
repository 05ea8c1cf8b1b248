"""The mean of differences and the correction of p-values, against textbooks and statsmodels."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from gradscope.study.estimates import estimate, holm


def test_interval_of_a_single_pair_is_the_paired_t_interval():
    """One pair of variants over seeds: scipy's interval and test of the paired differences."""
    rng = np.random.default_rng(1)
    differences = rng.normal(1.0, 1.0, 7)
    found = estimate([differences])
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(test.pvalue)


def test_a_pair_with_one_seed_takes_the_mean_variance_of_the_others():
    """The standard error by its formula: each pair's variance of the mean, over pairs squared."""
    first, second, single = np.array([1.0, 2.0, 6.0]), np.array([0.0, 4.0]), np.array([5.0])
    found = estimate([first, second, single])
    pooled = (first.var(ddof=1) + second.var(ddof=1)) / 2
    of_means = [first.var(ddof=1) / 3, second.var(ddof=1) / 2]
    assert found["error"] == pytest.approx(math.sqrt((sum(of_means) + pooled) / 9))
    freedom = sum(of_means) ** 2 / (of_means[0] ** 2 / 2 + of_means[1] ** 2 / 1)
    assert found["freedom"] == pytest.approx(freedom)


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_correction_is_holms(n):
    """As statsmodels has it; Bonferroni's single factor gives other numbers."""
    p = np.random.default_rng(n).beta(0.3, 4.0, n).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    if n > 1:
        assert holm(p) != pytest.approx(multipletests(p, method="bonferroni")[1])
