"""The gradient that a tensor carries: sums of paths, and shares behind an operation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.theory.flux import Flux, Operation

logs = st.floats(-2000, 2000) | st.just(-math.inf)


@given(logs, logs)
def test_squares_add(a, b):
    """The sum is ln(e^a + e^b), far beyond what a float can hold."""
    total = (Flux(a) + Flux(b)).log_square
    expected = torch.logaddexp(*torch.tensor([a, b], dtype=torch.float64))
    assert total == pytest.approx(float(expected), abs=1e-9)


def test_shares_add_by_weight():
    """The share of a sum is the mean of the shares, weighted by the squared norms."""
    left = Flux(0.0, channels=torch.tensor([2.0, 0.0]))
    right = Flux(math.log(3.0))
    total = left + right
    assert total.log_square == pytest.approx(math.log(4.0))
    assert total.channels.tolist() == pytest.approx([5 / 4, 3 / 4])
    assert (right + Flux()) == right
    assert (Flux(0.0, channels=torch.ones(2)) + Flux(0.0, channels=torch.ones(3))).channels is None


def test_an_uneven_share_through_a_mix():
    """A matrix of squares acts on the share; its sum is the factor."""
    squares = torch.tensor([[1.0, 2.0], [0.0, 4.0]])  # (out, in)
    operation = Operation((7.0,), mixes=(lambda c: squares.T @ c,), channels=2)
    even = operation.back(0, Flux(0.0))
    assert even.log_square == pytest.approx(math.log(7.0))
    assert even.channels is None
    behind = operation.back(0, Flux(0.0, channels=torch.tensor([2.0, 0.0])))
    assert behind.log_square == pytest.approx(math.log(3.0))  # (2 * 1 + 2 * 2) / 2
    assert behind.channels.tolist() == pytest.approx([2 / 3, 4 / 3])


def test_a_border_loses_gradient():
    """What the spread over positions does not pass on is lost."""
    operation = Operation((5.0,), sizes=(4,), spread=lambda p: p * torch.tensor([0.0, 1.0, 1.0, 0]))
    behind = operation.back(0, Flux(0.0))
    assert behind.log_square == pytest.approx(math.log(2.5))
    assert behind.positions.tolist() == [0.0, 2.0, 2.0, 0.0]


def test_nothing_behind_a_zero():
    """A factor of zero, or a mix that leaves nothing, ends the path."""
    assert Operation((0.0,)).back(0, Flux(0.0)) == Flux()
    empty = Operation((1.0,), mixes=(torch.zeros_like,), mixes_evenly=False, channels=3)
    assert empty.back(0, Flux(0.0)) == Flux()


def test_shares_are_kept_only_where_they_mean_something():
    """An operation that rearranges forgets the shares; one per element keeps both."""
    flux = Flux(0.0, channels=torch.tensor([0.5, 1.5]), positions=torch.tensor([1.0]))
    moved = Operation((1.0,)).back(0, flux)
    assert moved.channels is None
    assert moved.positions is None
    kept = Operation((1.0,), keeps_channels=True, keeps_positions=True).back(0, flux)
    assert kept.channels is flux.channels
    assert kept.positions is flux.positions
