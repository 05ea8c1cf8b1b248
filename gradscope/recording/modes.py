"""Modes: since when modules are in evaluation mode while the network is trained.

Looked at in the first recorded pass and then whenever the ring of rows is full, so that most
recorded steps pay nothing.
"""

from __future__ import annotations

import weakref

from torch import nn


class Modes:
    """The modes of the modules that ran in a training pass."""

    def __init__(self) -> None:
        self._modules: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._since: dict[str, int] = {}

    def forget(self) -> None:
        """What was met ran in validation."""
        self._modules.clear()
        self._since.clear()

    def meet(self, name: str, module: nn.Module) -> None:
        """A module runs for the first time."""
        self._modules.append((name, weakref.ref(module)))
        if not module.training:
            self._since[name] = 0

    def look(self, step: int) -> None:
        """Look at all of them at the end of a step."""
        for name, ref in self._modules:
            module = ref()
            if module is None or module.training:
                self._since.pop(name, None)
            else:
                self._since.setdefault(name, step)

    def of(self, name: str) -> dict[str, float]:
        """``eval_since``: the step from which on each look found it in evaluation mode."""
        return {"eval_since": float(self._since[name])} if name in self._since else {}
