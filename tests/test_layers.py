"""The table of layer classes against what torch's activations compute."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn.modules import activation

from gradscope.layers import BOUNDS, RECTIFIERS

FAR = 1e6


def curve(kind, points):
    """What an activation makes of single numbers; None of a class that takes no single number."""
    required = [
        p for p in inspect.signature(kind).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    if required or "dim" in inspect.signature(kind).parameters or kind is nn.Softmax2d:
        return None  # needs settings, or mixes its inputs
    with torch.no_grad():
        return [kind()(torch.tensor([point])).item() for point in points]


KINDS = [kind for name in activation.__all__ if curve(kind := getattr(nn, name), [1.0]) is not None]


def test_most_of_torchs_activations_are_looked_at():
    """What is left out needs arguments or mixes its inputs."""
    names = {getattr(nn, name) for name in activation.__all__} - set(KINDS)
    assert {kind.__name__ for kind in names} == {
        "GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_those_far_out(kind):
    """A class is in `BOUNDS` exactly if it flattens on both sides, and with these values."""
    low, high = curve(kind, [-FAR, FAR])
    lower, higher = curve(kind, [-2 * FAR, 2 * FAR])
    if lower == pytest.approx(low, abs=1e-5) and higher == pytest.approx(high, abs=1e-5):
        assert BOUNDS[kind] == pytest.approx((low, high), abs=1e-5)
    else:
        assert kind not in BOUNDS


@pytest.mark.parametrize("kind", KINDS)
def test_rectifiers_are_zero_on_one_side_alone(kind):
    """A class is in `RECTIFIERS` exactly if it is zero for negative numbers and not for others."""
    left = curve(kind, [-FAR, -1.0, -1e-3])
    right = curve(kind, [1e-3, 1.0, FAR])
    assert (kind in RECTIFIERS) == (not any(left) and all(right))
