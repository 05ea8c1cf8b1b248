"""The robust centre and its interval, against scipy and by counting all signs."""

import itertools
import random

import pytest
from scipy import stats

from gradscope.diagnosis.robust import _signed_rank_quantile, location


def walsh(sample):
    """All pairwise means in order, each value with itself too."""
    return sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(sample, 2))


@pytest.mark.parametrize("n", [6, 9, 20, 59])
def test_interval_inverts_the_signed_rank_test(n):
    """Between two pairwise means scipy's exact test rejects just outside of either end only."""
    rng = random.Random(n)
    sample = [rng.gauss(0.3, 1.0) for _ in range(n)]
    means, (_, low, high) = walsh(sample), location(sample)
    first, last = means.index(low), means.index(high)
    for i, inside in ((first - 1, False), (first, True), (last - 1, True), (last, False)):
        beyond = {-1: means[0] - 1, len(means) - 1: means[-1]}
        start = beyond.get(i, means[max(i, 0)])
        shift = (start + (means[i + 1] if i + 1 < len(means) else start + 2)) / 2
        test = stats.wilcoxon([x - shift for x in sample], method="exact")
        assert bool(test.pvalue > 0.05) is inside


@pytest.mark.parametrize("n", [6, 7, 8, 11, 14])
def test_rank_of_the_interval_by_counting(n):
    """Of all 2^n signs at most 2.5 % give a sum of ranks below it, and more give one up to it."""
    sums = [0]
    for rank in range(1, n + 1):
        sums += [s + rank for s in sums]
    k = _signed_rank_quantile(n)
    assert sum(s < k for s in sums) <= 0.025 * 2**n < sum(s <= k for s in sums)


@pytest.mark.parametrize("n", [61, 62, 64, 70, 90, 100, 150])
def test_rank_of_a_large_sample_is_at_most_one_on_the_safe_side(n):
    """The normal approximation is the exact rank, or the next wider one."""
    counts = [1]
    for m in range(1, n + 1):
        counts = [
            (counts[s] if s < len(counts) else 0) + (counts[s - m] if s >= m else 0)
            for s in range(len(counts) + m)
        ]
    below = list(itertools.accumulate(counts))
    exact = next(k for k, total in enumerate(below) if total > 0.025 * 2**n)
    assert exact - 1 <= _signed_rank_quantile(n) <= exact


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_small_samples_get_students_interval(n):
    """Below six values the interval is scipy's t interval."""
    rng = random.Random(n)
    sample = [rng.gauss(0.0, 1.0) for _ in range(n)]
    expected = stats.t.interval(0.95, n - 1, loc=sum(sample) / n, scale=stats.sem(sample))
    centre, low, high = location(sample)
    assert low <= centre <= high
    assert (low, high) == pytest.approx(expected, rel=1e-3)


def test_centre_withstands_outliers():
    """A fifth of wild values moves the centre by far less than it moves the mean."""
    sample = [0.0] * 40 + [1e6] * 10
    assert location(sample)[0] == 0.0
