"""The recorder on the classification models of torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

import gradscope

QUICK = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18", "mnasnet0_5")

EVERY = torchvision.models.list_models(module=torchvision.models)

SIZES = {"inception_v3": 299, "googlenet": 64}
FIXED = ("vit_", "maxvit")  # only the size they were made for


def size_of(name: str) -> int:
    """Smallest convenient input size."""
    if name.startswith("vit_h"):
        return 224 // 14 * 14
    if name.startswith(FIXED):
        return 224
    return SIZES.get(name, 64)


def attach_and_step(name: str) -> None:
    """Attach, take one step, close: finite records for every trainable parameter."""
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, **arguments)
    keys, optimizer = list(model.state_dict()), torch.optim.SGD(model.parameters(), lr=1e-3)
    size = size_of(name)
    with gradscope.watch(model, optimizer, every=1) as scope:
        output = model(torch.randn(2, 3, size, size))
        parts = [output] if isinstance(output, torch.Tensor) else list(output)
        sum(p.float().square().mean() for p in parts if p is not None).backward()
        optimizer.step()
    trace = scope.trace()
    frame = trace.to_pandas().query("kind == 'weight'")
    names = set((frame.module + "." + frame.parameter).str.strip("."))
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert frame["norm"].map(math.isfinite).all()
    assert (frame.nonfinite_fraction == 0).all()
    assert not trace.structure.unused
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", QUICK)
def test_quick_models(name):
    """Small models of five families."""
    attach_and_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EVERY if n not in QUICK])
def test_every_classification_model(name):
    """The whole zoo."""
    attach_and_step(name)
