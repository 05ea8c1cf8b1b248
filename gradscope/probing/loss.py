"""The loss of a probe: the user's own, one for the targets, or one even over all outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.errors import ModelError
from gradscope.nested import describe, tensors_in

Loss = Callable[..., Tensor]


_FUNCTIONAL = "random linear functional of all outputs"

_RANDOM_CLASSES = "cross entropy against random classes"


EVEN = (_FUNCTIONAL, _RANDOM_CLASSES)
"""Losses whose gradient is spread evenly over all outputs."""


def loss_of(
    model: nn.Module, outputs: Any, targets: Any, loss: Loss | None, generator: torch.Generator
) -> tuple[Tensor, str]:
    """The value to differentiate and, for people, what it is."""
    reached = [t for t in tensors_in(outputs) if t.requires_grad and t.numel()]
    if not reached:
        raise ModelError(
            f"no output of {type(model).__name__} needs a gradient ({describe(outputs)}): "
            "every parameter is frozen, or the output is detached; unfreeze what is to be trained"
        )
    if loss is not None:
        value = loss(outputs) if targets is None else loss(outputs, targets)
        return _checked(value, "the loss"), getattr(loss, "__name__", type(loss).__name__)
    if targets is not None:
        return _supervised(outputs, targets)
    own = _member(outputs, "loss")
    if isinstance(own, Tensor) and own.requires_grad:
        return _checked(own, "the model's own loss"), "the model's own loss"
    if all(t.dim() == 0 for t in reached):
        return torch.stack([t.float() for t in reached]).sum(), "sum of the model's own losses"
    if all(t.dim() == 2 and t.shape[1] > 1 and t.is_floating_point() for t in reached):
        return _random_classes(reached, generator), _RANDOM_CLASSES
    return _random_functional(reached, generator), _FUNCTIONAL


def _supervised(outputs: Any, targets: Any) -> tuple[Tensor, str]:
    logits = next(
        (m for m in (_member(outputs, n) for n in ("logits", "out")) if isinstance(m, Tensor)),
        tensors_in(outputs)[0],
    )
    if not isinstance(targets, Tensor):
        targets = torch.as_tensor(targets, device=logits.device)
    targets = targets.to(logits.device)
    if not targets.is_floating_point():
        targets = targets.long()
        if logits.dim() > 2 and logits.shape[:-1] == targets.shape:  # classes come last in text
            logits, targets = logits.flatten(0, -2), targets.flatten()
        try:
            return functional.cross_entropy(logits.float(), targets), "cross entropy"
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelError(
                f"cross entropy of output {describe(logits)} with targets {describe(targets)} in "
                f"{_range(targets)} failed: {error}; give classes below the width of the output, "
                "or loss="
            ) from error
    if targets.shape != logits.shape:
        raise ModelError(
            f"targets {describe(targets)} do not fit the output {describe(logits)}; "
            "give integer classes, targets of the output's shape, or loss="
        )
    return functional.mse_loss(logits.float(), targets.float()), "mean squared error"


def _random_classes(logits: list[Tensor], generator: torch.Generator) -> Tensor:
    losses = []
    for each in logits:
        classes = torch.randint(each.shape[1], each.shape[:1], generator=generator, device="cpu")
        losses.append(functional.cross_entropy(each.float(), classes.to(each.device)))
    return torch.stack(losses).sum()


def _random_functional(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    real = [torch.view_as_real(t) if t.is_complex() else t for t in outputs]
    directions = [torch.randn(t.shape, generator=generator, device="cpu") for t in real]
    length = math.sqrt(sum(float(d.square().sum()) for d in directions))
    parts = [
        ((d / length).to(t.device) * t.float()).sum() for d, t in zip(directions, real, strict=True)
    ]
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()


def _member(outputs: Any, name: str) -> Any:
    """What a mapping, dataclass or named tuple holds under a name, else None."""
    if isinstance(outputs, Mapping):
        return outputs.get(name)
    return None if isinstance(outputs, Tensor) else getattr(outputs, name, None)


def _checked(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ModelError(f"{what} is {describe(value)}; a loss is a tensor with one element")
    if not value.requires_grad:
        raise ModelError(f"{what} does not depend on any parameter; do not detach the output")
    return value.reshape(())


def _range(targets: Tensor) -> str:
    return f"[{int(targets.min())}, {int(targets.max())}]" if targets.numel() else "[]"
