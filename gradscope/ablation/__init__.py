"""Ablation grids: from YAML to results on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscope.lazy import lazily

if TYPE_CHECKING:
    from gradscope.ablation.grid import Grid as Grid
    from gradscope.ablation.run import run_grid as run_grid
    from gradscope.ablation.store import Store as Store

_HOME = {"Grid": ".grid", "Store": ".store", "run_grid": ".run"}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one list of names is enough

__getattr__ = lazily(__name__, _HOME)  # a worker process starts without torch
