"""Layers that a network holds in plain lists: their parameters are known, their calls are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_DEPTH = 4
"""Lists within lists are looked through so far."""


def unlisted(model: nn.Module) -> str:
    """A sentence on the layers whose parameters the network has and whom it does not list.

    Keras keeps its layers so: `Module.modules` does not know them. A layer whose parameters are
    not those of the network, such as a teacher, is none of it.

    Returns:
        The blind spot; empty where there is none.
    """
    known = {id(module) for module in model.modules()}
    own = {id(parameter) for parameter in model.parameters()}
    found: dict[int, str] = {}
    for module in model.modules():
        for value in list(vars(module).values()):
            for layer in _modules_in(value, _DEPTH):
                if id(layer) not in known and any(id(p) in own for p in layer.parameters()):
                    found[id(layer)] = type(layer).__name__
    if not found:
        return ""
    kinds = ", ".join(sorted(set(found.values())))
    return (
        f"{len(found)} layers ({kinds}) stand in plain Python lists of the network and not among "
        "its modules: the gradients of their parameters are recorded, their outputs cannot be"
    )


def _modules_in(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, dict | list | tuple):
        for part in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _modules_in(part, depth - 1)
