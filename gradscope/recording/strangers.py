"""Strangers: leaves of the graph that a network trains on and that are no parameters of it."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.nested import tensors_in


class Strangers:
    """What lies between the inputs and the outputs of a network without belonging to it.

    Layers in a plain Python list run, get gradients and are in no ``parameters()``. The first
    forward pass tells: its graph is walked back from the outputs to the leaves, as far as the
    inputs, beyond which other networks may lie.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._outside: dict[int, str] = {}
        """Identity of a parameter of a module that ran and is no part of the network -> label."""
        self._found: list[tuple[weakref.ref[Tensor], str]] | None = None

    def hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Forward hook on all modules, with their named arguments, for the first pass."""
        model = self._model()
        if model is None or self._found is not None or not torch.is_grad_enabled():
            return
        if module is not model:
            kind = type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                self._outside[id(parameter)] = f"{kind}.{name} {tuple(parameter.shape)}"
            return
        ends = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        if ends:
            inputs = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
            self._found = self._leaves(model, ends, inputs)
            self._outside.clear()

    def named(self, held: set[int]) -> tuple[str, ...]:
        """Each kind of stranger, with how many there are, but for those that an optimizer holds.

        Args:
            held: identities of what the optimizers hold.
        """
        alive = [(leaf(), label) for leaf, label in self._found or ()]
        labels = Counter(label for leaf, label in alive if leaf is None or id(leaf) not in held)
        return tuple(f"{n} x {label}" if n > 1 else label for label, n in labels.items())

    def _leaves(
        self, model: nn.Module, ends: list[Any], inputs: list[Tensor]
    ) -> list[tuple[weakref.ref[Tensor], str]]:
        own = list(model.parameters())
        if any(hasattr(p, "device_mesh") for p in own):
            return []  # a sharded model computes with parameters gathered for the occasion
        known = {id(t) for t in (*own, *inputs)}
        done = {t.grad_fn for t in inputs if t.grad_fn is not None}
        found, waiting = [], list(ends)
        while waiting:
            node = waiting.pop()
            if node in done:
                continue
            done.add(node)
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, Tensor) and id(leaf) not in known:
                label = self._outside.get(id(leaf)) or _attribute(model, leaf)
                found.append((weakref.ref(leaf), label))
            waiting.extend(n for n, _ in node.next_functions if n is not None)
        return found


def _attribute(model: nn.Module, leaf: Tensor) -> str:
    """Where a module holds a tensor that it did not register."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            parts = list(value.values()) if isinstance(value, dict) else value
            held = parts if isinstance(parts, list | tuple) else (parts,)
            if any(part is leaf for part in held):
                return f"{path}.{name} {tuple(leaf.shape)}".lstrip(".")
    return f"{type(leaf).__name__} {tuple(leaf.shape)}"
