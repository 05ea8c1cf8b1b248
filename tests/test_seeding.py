"""Generators are seeded for a while, and come back."""

# ruff: noqa: NPY002 - the legacy generator of NumPy is the one that models share
from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gradscope.seeding import seeded


def test_seed_decides_and_none_goes_on():
    """A seed gives equal draws; None continues the caller's stream."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(7):
        first = torch.rand(2)
    with seeded(7):
        assert torch.equal(torch.rand(2), first)
    with seeded(None):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_all_generators_come_back_even_after_an_error(seed):
    """Those of Python, NumPy and torch, wherever the draws inside left them."""
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"), seeded(seed):  # noqa: PT012 - draws come first
        random.random()
        np.random.random(700)
        torch.rand(3)
        raise ValueError("inside")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
