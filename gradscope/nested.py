"""Tensors in what modules take and return, whatever the nesting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors of a model's output, in order: tensors, tuples, mappings, dataclasses, nested."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        parts = list(outputs.values())
    elif isinstance(outputs, (tuple, list)):
        parts = list(outputs)
    elif hasattr(outputs, "__dataclass_fields__") and not isinstance(outputs, type):
        parts = [getattr(outputs, name) for name in outputs.__dataclass_fields__]
    else:  # whatever else somebody registered with pytree
        parts = [leaf for leaf in tree_leaves(outputs) if leaf is not outputs]
    return [tensor for part in parts for tensor in tensors_in(part)]


def describe(inputs: Any) -> str:
    """Shapes and types of tensors in any nesting, on one line: ``(16, 3, 64, 64) float32``."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key}={describe(value)}" for key, value in inputs.items())
    if isinstance(inputs, (tuple, list)):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__
