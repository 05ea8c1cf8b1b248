"""What the recorder knows of loss scaling where nobody handed it a GradScaler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradscope


def test_a_fused_optimizer_tells_the_scale_and_that_it_skips():
    """It unscales by itself and skips on Inf: the norms are unscaled, and the step is marked."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inputs, norms, weights = torch.randn(6, 4), [], []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(inputs).square().sum() * factor).backward()
            norms.append(float(model.weight.grad.double().norm()) / scaler.get_scale())
            weights.append(model.weight.detach().clone())
            scaler.step(optimizer)
            scaler.update()
    assert torch.equal(weights[1], weights[2])
    assert [step.skipped for step in scope.trace().steps] == [False, True, False]
    assert [step.loss_scale for step in scope.trace().steps] == [1024.0, 1024.0, 512.0]
    rows = scope.trace().to_pandas().query("kind == 'weight' and parameter == 'weight'")
    assert rows.norm.tolist()[::2] == pytest.approx(norms[::2], rel=1e-5)
