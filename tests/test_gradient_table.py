"""The published gradient ratios of HW5Net at initialisation come out of recorded traces."""

from __future__ import annotations

import math

import pytest
import torch

import gradscope
from gradscope.models import ModelConfig, build

# First convolution's weight-gradient norm over that of the last 128-channel block: one seed each,
# so the order of magnitude and the sign are what is compared (depth 32, depth 64).
PUBLISHED = {
    (False, False, "default"): (2e-8, 1e-14),
    (False, False, "xavier"): (5e-3, 1e-5),
    (False, False, "kaiming"): (6e-2, 1e-1),
    (False, True, "default"): (7, 126),
    (False, True, "xavier"): (25, 446),
    (False, True, "kaiming"): (7, 126),
    (True, False, "default"): (0.6, 0.6),
    (True, False, "kaiming"): (5e-2, 1e-2),
    (True, True, "default"): (1.2, 1.8),
    (True, True, "xavier"): (5, 9),
    (True, True, "kaiming"): (1.2, 1.8),
}


def traced(skip, batch_norm, init, depth):
    """One recorded step on sixteen noise images; the trace and the loss."""
    arguments = {"skip": skip, "batch_norm": batch_norm, "depth": depth}
    model = build(ModelConfig(name="hw5net", args=arguments, init=init), n_classes=5, seed=0)
    inputs, targets = torch.randn(16, 3, 64, 64), torch.randint(0, 5, (16,))
    with gradscope.watch(model, every=1) as scope:
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        scope.step()
    return scope.trace(), float(loss.detach())


def ratio(trace):
    """Norm of the first convolution's gradient over that of the last one, from the table."""
    frame = trace.to_pandas().query("kind == 'weight' and parameter == 'weight'")
    convolutions = frame[frame.module.str.contains("conv")].sort_values("order")
    return convolutions["norm"].iloc[0] / convolutions["norm"].iloc[-1]


@pytest.mark.parametrize("depth", [32, 64])
@pytest.mark.parametrize("variant", PUBLISHED)
def test_first_to_last_ratio(variant, depth):
    """Each variant at each depth agrees with the published ratio within a factor of four."""
    trace, _ = traced(*variant, depth)
    expected = PUBLISHED[variant][depth == 64]
    assert abs(math.log10(ratio(trace) / expected)) < math.log10(4)
    assert len(trace.structure.unused) == (14 if variant[1] else 8)


@pytest.mark.parametrize(("depth", "decades"), [(32, 2.8), (64, 3.8)])
def test_skips_without_batch_norm_let_activations_explode(depth, decades):
    """With Kaiming, skips and no norm the loss starts in the hundreds (32) or thousands (64)."""
    _, loss = traced(True, False, "kaiming", depth)
    assert abs(math.log10(loss) - decades) < 1


def test_biases_before_a_norm_are_rounding_not_gradient():
    """Every convolution bias before batch norm is named as cancelled, and none of the others."""
    trace, _ = traced(True, True, "kaiming", 32)
    frame = trace.to_pandas().query("kind == 'weight' and parameter == 'bias'").set_index("module")
    cancelled = {name.removesuffix(".bias") for name in trace.structure.cancelled}
    rounding = set(frame.index[frame["norm"] < 1e-5 * frame["norm"].max()])
    assert cancelled == rounding
    assert len(cancelled) == 21
