"""Strangers: leaves of the graph that a network trains on and that are no parameters of it."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor, nn

from gradscope.nested import tensors_in
from gradscope.recording import reductions


class Strangers:
    """What lies between the inputs and the outputs of a network without belonging to it.

    Layers in a plain Python list run, get gradients and are in no ``parameters()``. The first
    forward pass tells: its graph is walked back from the outputs to the leaves, as far as the
    inputs, beyond which other networks may lie.

    Guests stand in the places of parameters while a module runs, as `functional_call` puts them
    there. What stands there still when no module runs has replaced the parameter, and is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._found: list[tuple[weakref.ref[Tensor], str]] | None = None
        self._names = {id(module): name for name, module in model.named_modules()}
        self._own: dict[int, weakref.ref[Tensor]] = {
            id(p): weakref.ref(p) for p in model.parameters()
        }
        self._guests: dict[str, weakref.ref[Tensor]] = {}
        """Name of a parameter -> what stood in its place."""

    def meet(self, module: nn.Module) -> None:
        """Note what stands in the places of a module's parameters in its first call."""
        path, held = self._names.get(id(module)), module._parameters
        if path is None or not isinstance(held, dict):  # of TorchScript it is none
            return
        for name, tensor in held.items():
            own = self._own.get(id(tensor))
            if tensor is not None and (own is None or own() is not tensor):
                self._guests[f"{path}.{name}".lstrip(".")] = weakref.ref(tensor)

    def replaced(self) -> set[str]:
        """Names of the parameters in whose places others stood; call it when no module runs."""
        model = self._model()
        stay = {id(p) for p in model.parameters()} if model is not None else set()
        return {name for name, ref in self._guests.items() if id(ref()) not in stay}

    def look(self, args: Any, output: Any) -> None:
        """Take what the network was called with and gave, for the first time."""
        model = self._model()
        if model is None or self._found is not None:
            return
        ends = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        if ends:
            inputs = [t for t in tensors_in(args) if reductions.is_readable(t)]
            self._found = self._leaves(model, ends, inputs)

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
        others = (ref() for ref in (*self._own.values(), *self._guests.values()))
        known = {id(t) for t in (*own, *inputs, *others)}
        done = {t.grad_fn for t in inputs if t.grad_fn is not None}
        # A network may ask for the gradient at a view of its input, as one over checkpoints does.
        memory = {reductions.memory(t) for t in inputs}
        labels: dict[int, str] | None = None
        found, waiting = [], list(ends)
        while waiting:
            node = waiting.pop()
            if node in done:
                continue
            done.add(node)
            leaf = getattr(node, "variable", None)
            if (
                isinstance(leaf, Tensor)
                and id(leaf) not in known
                and reductions.memory(leaf) not in memory
            ):
                labels = _unregistered(model) if labels is None else labels
                found.append((weakref.ref(leaf), labels.get(id(leaf)) or _described(leaf)))
            waiting.extend(n for n, _ in node.next_functions if n is not None)
        return found


_DEPTH = 4
"""Lists within lists are looked through so far."""


def _unregistered(model: nn.Module) -> dict[int, str]:
    """Identity of each tensor that a module holds and did not register -> where, or in what."""
    labels: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                _label(value, f"{path}.{name}".lstrip("."), labels, _DEPTH)
    return labels


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _label(value: Any, place: str, labels: dict[int, str], depth: int) -> None:
    if isinstance(value, Tensor):
        labels.setdefault(id(value), f"{place} {tuple(value.shape)}")
    elif isinstance(value, nn.Module):
        for owner in value.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                labels[id(parameter)] = f"{type(owner).__name__}.{name} {tuple(parameter.shape)}"
    elif depth and isinstance(value, dict | list | tuple):
        for part in list(value.values()) if isinstance(value, dict) else value:
            _label(part, place, labels, depth - 1)


def _described(leaf: Tensor) -> str:
    return f"{type(leaf).__name__} {tuple(leaf.shape)}"
