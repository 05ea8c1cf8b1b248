"""Patient: what the changes need to know of a network, its skips above all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradscope.probing.isolation import call_model, preserved
from gradscope.trace.table import Trace


@dataclass(frozen=True)
class Patient:
    """What the changes need to know of the network."""

    trace: Trace
    skippable: tuple[str, ...]
    """Blocks without a skip whose output has the shape of their input."""
    residual: tuple[str, ...]
    """Blocks with a skip whose output has the shape of their input."""
    run: Callable[[nn.Module], Any]


def examine(model: nn.Module, inputs: Any, trace: Trace) -> Patient:
    """Find the blocks that keep the shape of their input, and which of them have a skip."""
    names = [b.name for b in trace.structure.blocks if b.call == 0 and b.name]
    modules = dict(model.named_modules())
    skippable: list[str] = []
    residual: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        del module
        given = args[0] if args else None
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        if given.shape != output.shape or given.grad_fn is None or output.grad_fn is None:
            return
        found = residual if _has_skip(output.grad_fn, given.grad_fn) else skippable
        if name not in found:
            found.append(name)

    handles = [
        modules[name].register_forward_hook(partial(look, name))
        for name in names
        if name in modules
    ]
    try:
        with preserved(model, 0):
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()

    def run(changed: nn.Module) -> Any:
        return call_model(changed, inputs)

    return Patient(trace, tuple(skippable), tuple(residual), run)


_MIXING = ("Convolution", "Addmm", "Mm", "Bmm", "ScaledDotProduct", "MkldnnRnn", "CudnnRnn")
"""Autograd nodes behind which a tensor is no longer its input plus something."""


def _has_skip(output: Any, given: Any) -> bool:
    """Whether a path leads from the output of a block to its input past all weights."""
    stack, seen = [output], set()
    while stack:
        node = stack.pop()
        if node is given:
            return True
        if node is None or node in seen or node.name().startswith(_MIXING):
            continue
        seen.add(node)
        stack.extend(source for source, _ in node.next_functions)
    return False
