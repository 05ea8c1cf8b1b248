"""Tensors in what modules take and return, whatever the nesting."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors of a model's output, in order: tensors, tuples, mappings, dataclasses, nested.

    Nothing of a user's runs: dictionaries are read without their own methods, objects without
    their properties, and a mapping that makes its values when it is asked is left alone. Whatever
    contains itself is read once.
    """
    found: list[Tensor] = []
    if isinstance(outputs, Tensor):  # what most modules return
        return [outputs]
    within: set[int] = set()
    waiting: list[Any] = [outputs]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            found.append(part)
            continue
        parts = _parts(part)
        if parts and id(part) not in within:
            within.add(id(part))
            waiting.extend(reversed(parts))
    return found


def _parts(outputs: Any) -> list[Any]:
    kind = type(outputs)  # a proxy claims to be an instance of everything
    for plain, parts in _PLAIN.items():
        if issubclass(kind, plain):
            return list(parts(outputs))
    if hasattr(kind, "__dataclass_fields__"):
        held = getattr(outputs, "__dict__", None)
        if held is None:  # with slots, of which some may be unset
            held = {n: getattr(outputs, n, None) for n in kind.__dataclass_fields__}
        return [held[name] for name in kind.__dataclass_fields__ if name in held]
    if kind in SUPPORTED_NODES:  # whatever else somebody registered with pytree
        return [leaf for leaf in tree_leaves(outputs) if leaf is not outputs]
    return []


_PLAIN: dict[type, Callable[[Any], Iterable[Any]]] = {
    dict: dict.values,
    tuple: tuple.__iter__,
    list: list.__iter__,
    UserDict: lambda outputs: vars(outputs).get("data", {}).values(),
}


def describe(inputs: Any) -> str:
    """Shapes and types of tensors in any nesting, on one line: ``(16, 3, 64, 64) float32``."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key}={describe(value)}" for key, value in inputs.items())
    if isinstance(inputs, (tuple, list)):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__
