"""Reading autograd nodes: their kind, shapes and the values they saved for the backward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.flux import Operation

Rule = Callable[[Any], Operation]
"""From an autograd node, before its graph is freed, to what it does to the gradient."""

PERMUTING = ("Permute", "T", "Transpose")
MOVING = (
    "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D",
    "Alias",
    "Amax",
    "Amin",
    "AsStrided",
    "Diagonal",
    "Expand",
    "Flip",
    "Gather",
    "Index",
    "IndexSelect",
    "Max",
    "Min",
    "Repeat",
    "ReshapeAlias",
    "Roll",
    "Select",
    "Slice",
    "Split",
    "SplitWithSizes",
    "Squeeze",
    "Unbind",
    "Unfold",
    "UnsafeSplit",
    "UnsafeSplitWithSizes",
    "UnsafeView",
    "Unsqueeze",
    "View",
)


def kind_of(node: Any) -> str:
    """``Convolution`` for a ``ConvolutionBackward0``; the whole name of a custom function."""
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def output_shape(node: Any, index: int = 0) -> tuple[int, ...]:
    """Shape of one output of a node; empty for a custom function that does not tell."""
    metadata = node._input_metadata  # noqa: SLF001 - autograd has no public name for it
    return tuple(metadata[index].shape) if index < len(metadata) else ()


def saved(node: Any, name: str) -> Any:
    """A value that a node saved for its backward pass; None where it did not."""
    return getattr(node, f"_saved_{name}", None)


def dims(node: Any, rank: int) -> list[int]:
    """Dimensions that a node works on, not negative; all where it names none."""
    found = saved(node, "dim")
    found = found if isinstance(found, tuple) else (found,)
    signed = [d - 2**64 if d >= 2**63 else d for d in found if d is not None]
    return [d % rank for d in signed] or list(range(rank))


def mean_square(value: Tensor | float | None) -> float:
    """Mean square of a tensor or a number; NaN where the tensor was not saved."""
    if isinstance(value, Tensor):
        if not value.numel():
            return 0.0
        value = value.detach() if value.is_floating_point() else value.float()
        half = value.element_size() < 4
        norm = torch.linalg.vector_norm(value, dtype=torch.float32 if half else None)
        squared: float = norm.item() ** 2
        return squared / value.numel()
    return math.nan if value is None else abs(value) ** 2


def same_channels(node: Any) -> bool:
    """Whether samples and channels, the first two dimensions, are the same before and after."""
    source, index = node.next_functions[0]
    if source is None or hasattr(source, "variable"):
        return False
    before, after = output_shape(source, index), output_shape(node)
    return len(after) > 1 and before[:2] == after[:2]


def carries(node: Any) -> tuple[bool, ...]:
    """Per input, whether anything but parameters lies before it."""
    return tuple(not is_constant(source) for source, _ in node.next_functions)


def is_constant(source: Any) -> bool:
    """Whether a tensor is a parameter or a rearranged one."""
    if source is None or hasattr(source, "variable"):
        return True
    return kind_of(source) in (*PERMUTING, *MOVING) and all(
        is_constant(before) for before, _ in source.next_functions
    )


def per_element(factors: tuple[float, ...], label: str = "") -> Operation:
    """An operation that treats every element by itself."""
    return Operation(factors, label, keeps_positions=True, keeps_channels=True)
