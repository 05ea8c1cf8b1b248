"""Variation against numpy's variance, when it is taken, and of which tensors."""

import pytest
import torch
from torch import nn

import gradscope
from gradscope.recording.variation import EVERY, WITHIN, variation


def expected(tensor):
    """Variance along the first dimension / mean square, in double precision."""
    rows = tensor.double().numpy().reshape(len(tensor), -1)
    return rows.var(axis=0).mean() / (rows**2).mean()


@pytest.mark.parametrize("shape", [(8,), (8, 3), (64, 64), (5, 3, 4), (4, 2, 3, 3)])
def test_small_tensors_are_measured_whole(shape):
    """As numpy says."""
    torch.manual_seed(0)
    tensor = torch.randn(shape) + 0.7
    assert variation(tensor).item() == pytest.approx(expected(tensor), rel=1e-5)


def test_channels_last_gives_the_same():
    """The order of memory does not count, nor is it changed."""
    torch.manual_seed(0)
    tensor = torch.randn(4, 8, 5, 5) * torch.arange(8)[:, None, None]
    other = tensor.to(memory_format=torch.channels_last)
    few = 4 * 8 * 5 * 5
    assert few > 64
    exact = expected(tensor)
    assert variation(tensor).item() == pytest.approx(exact, rel=0.3)
    assert variation(other).item() == pytest.approx(exact, rel=0.3)


def test_large_tensors_are_sampled():
    """64 examples and 64 features of 500 x 3000: within the error of such a sample."""
    torch.manual_seed(0)
    tensor = torch.randn(500, 3000) + torch.randn(3000)
    assert variation(tensor).item() == pytest.approx(0.5, abs=0.1)


def test_alike_and_nothing_in_common():
    """The same row again and again has none; rows of mean zero have nothing else."""
    row = torch.randn(1, 32)
    assert variation(row.expand(16, 32)).item() < 1e-12
    pairs = torch.cat([row, -row])
    assert variation(pairs).item() == pytest.approx(1.0)


@pytest.mark.parametrize("tensor", [
    torch.ones(()), torch.ones(1, 4), torch.ones(0, 4), torch.ones(4, 0),
    torch.ones(4, dtype=torch.complex64), torch.eye(4).to_sparse(),
], ids=str)  # fmt: skip
def test_where_there_is_nothing_to_compare(tensor):
    """A single example, none, or numbers that are not real and dense."""
    assert variation(tensor) is None


def test_zeros_have_no_share():
    """0/0 is NaN, not alike."""
    assert variation(torch.zeros(4, 3)).isnan()


def test_taken_in_the_first_steps_and_seldom_later():
    """Of what is returned in every eighth, within in every 32nd; of weights in the first alone."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = model[0].weight.detach().clone()
    steps = range(WITHIN + EVERY + 1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in steps:
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    trace = scope.trace()
    tensors, values = trace.series("activation", "variation")
    assert [t.name for t in tensors] == ["0", "1", "2"]
    within, inside, returned = (~values.isnan()).T
    assert not inside.any()  # of an activation inside it is not taken
    assert returned.nonzero().flatten().tolist() == [0, 1, 2, 8, 16, 24, 32, 40]
    assert within.nonzero().flatten().tolist() == [0, 1, 2, 32]
    tensors, values = trace.series("weight", "variation")
    first = [t.name for t in tensors].index("0.weight")
    assert values[0, first].item() == pytest.approx(expected(weights), rel=1e-5)
    assert values[1:].isnan().all()


def test_norms_only_takes_none():
    """Not of outputs and not of weights."""
    model = nn.Linear(4, 8)
    with gradscope.watch(model, every=1, norms_only=True) as scope:
        model(torch.randn(16, 4)).sum().backward()
        scope.step()
    for kind in ("weight", "activation"):
        assert scope.trace().series(kind, "variation")[1].isnan().all()


def test_what_the_network_returns_is_taken_whatever_made_it():
    """Also where that is an activation, from the first recorded step on."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Softmax(1))
    x = torch.randn(16, 4)
    with gradscope.watch(model, every=1) as scope:
        for _ in range(3):
            out = model(x)
            out.square().sum().backward()
            scope.step()
    tensors, values = scope.trace().series("activation", "variation")
    last = [t.name for t in tensors].index("1")
    for value in values[:, last]:
        assert value.item() == pytest.approx(expected(out.detach()), rel=1e-5)
