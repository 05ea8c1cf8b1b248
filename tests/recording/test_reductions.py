"""Statistics against numpy, for any shape, layout and dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.recording import reductions

shapes = st.lists(st.integers(1, 9), min_size=0, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@given(shapes, dtypes, st.integers(0, 2**31), st.booleans())
def test_elements_are_the_same_multiset(shape, dtype, seed, transpose):
    """The vector holds each element once, whatever the shape and the strides."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if transpose and tensor.dim() > 1:
        tensor = tensor.transpose(0, -1)
    if tensor.dim() == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    vector = reductions.elements(tensor)
    assert vector.dim() == 1
    assert torch.equal(vector.sort().values, tensor.flatten().sort().values)


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_stride_is_prime_and_keeps_the_limit(numel, limit):
    """At most `limit` elements are taken, at least a third of what the limit allows."""
    stride = reductions.stride_for(numel, limit)
    taken = -(-numel // stride)
    assert taken <= limit
    assert stride == 1 or taken >= limit / 3
    assert stride == 1 or all(stride % d for d in range(2, math.isqrt(stride) + 1))


def test_fp16_norm_does_not_overflow():
    """Norm of a thousand elements of 1e4 in fp16, whose squares are beyond its range."""
    vector = torch.full((1000,), 1e4, dtype=torch.float16)
    assert float(reductions.norms([vector])[0]) == pytest.approx(1e4 * 1000**0.5, rel=1e-3)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, 1e-30]), min_size=1, max_size=50),
        min_size=1,
        max_size=6,
    )
)
def test_zero_shares_count(samples):
    """Shares of zeros equal counting, denormal-small values are not zeros."""
    found = reductions.zero_shares([torch.tensor(s) for s in samples])
    expected = [sum(x == 0 for x in s) / len(s) for s in samples]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(
        st.lists(
            st.sampled_from([0.0, math.nan, math.inf, -math.inf, 3.0]), min_size=1, max_size=50
        ),
        min_size=1,
        max_size=6,
    )
)
def test_nonfinite_shares_count(samples):
    """Shares of NaN and Inf equal counting."""
    expected = [sum(not math.isfinite(x) for x in s) / len(s) for s in samples]
    tensors = [torch.tensor(s) for s in samples]
    assert reductions.nonfinite_shares(tensors).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(-45, 30), min_size=1, max_size=40))
def test_histogram_bins_are_powers_of_two(exponents):
    """2^k falls into the bin of k; what is beyond the range into the end bins."""
    low, high = reductions.HISTOGRAM_RANGE
    counts = reductions.log2_histogram(torch.tensor([2.0**e for e in exponents]))
    expected = [0] * (high - low)
    for e in exponents:
        expected[min(max(e, low), high - 1) - low] += 1
    assert counts.tolist() == expected
