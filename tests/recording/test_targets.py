"""What an absolute error tells of its targets is never more than is so."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradscope.recording.targets import Rows, sides

TOLD = ("TanhBackward0", "SubBackward0", "AbsBackward0", "MeanBackward0")
NUMBERS = st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12)


def beyond(out, target):
    """By how much the targets must lie outside of [-1, 1], on average; 0 where nothing is known."""
    out = out.clone().requires_grad_()
    loss = functional.l1_loss(out, target)
    loss.backward()
    rows = Rows.of(out.detach())
    rows.take_gradient(out.grad)
    found = sides(TOLD, rows, loss.item(), 1.0)
    if found is None:
        return 0.0
    above, below, most = found
    return -below - above - most


@settings(max_examples=300, deadline=None)
@given(NUMBERS, NUMBERS)
def test_no_targets_within_the_range_are_called_out_of_it(out, target):
    """Whatever outputs and targets there are in [-1, 1]."""
    assert beyond(*(torch.tensor(x).reshape(12, 1) for x in (out, target))) <= 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_nor_where_a_sample_of_the_outputs_is_known(seed):
    """Each target as far as the range goes, in rows that are alike within an example."""
    torch.manual_seed(seed)
    out = (torch.randn(40, 1, 1) + torch.randn(40, 100, 8)).tanh()
    target = torch.randn(40, 1, 1).sign().expand(40, 100, 8)
    assert beyond(out, target) <= 0.0


@settings(max_examples=300, deadline=None)
@given(NUMBERS, st.floats(0, 10))
def test_targets_beyond_the_range_are_called_so_by_as_much(out, by):
    """All targets beyond the upper bound by so much: that, less two hundredths of the loss."""
    out = torch.tensor(out).reshape(12, 1)
    target = torch.full((12, 1), 1.01 + by)
    assert beyond(out, target) == pytest.approx(
        0.01 + by - 0.02 * (target - out).mean().item(), abs=1e-4
    )
