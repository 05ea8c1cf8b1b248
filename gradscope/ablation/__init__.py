"""Ablation grids: from YAML to results on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.ablation.grid import Grid as Grid
    from gradscope.ablation.run import run_grid as run_grid
    from gradscope.ablation.store import Store as Store

_HOME = {"Grid": "grid", "Store": "store", "run_grid": "run"}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one list of names is enough


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a worker process starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'gradscope.ablation' has no attribute '{name}'")
    return getattr(importlib.import_module(f"gradscope.ablation.{_HOME[name]}"), name)
