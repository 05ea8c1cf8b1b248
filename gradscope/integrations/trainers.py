"""Trainers: what their callbacks share, one scope for each run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradscope.recording.scope import Scope
from gradscope.trace.table import Trace
from gradscope.watching import watch


class Watched:
    """Begins a scope with a run of a trainer and keeps the trace of the last one.

    Args:
        options: what `gradscope.watch` takes beyond the model and the optimizer, which the trainer
            tells: ``every``, ``log``, ``on_finding`` and the others.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._scope: Scope | None = None
        self._trace: Trace | None = None

    @property
    def trace(self) -> Trace | None:
        """What the run that goes on, or else the last one, recorded; None before the first."""
        return self._trace if self._scope is None else self._scope.trace()

    def _begin(self, model: nn.Module, optimizers: Any, scaler: Any) -> None:
        self._end()  # a run that failed may have told nothing of its end
        known = {"scaler": scaler} if isinstance(scaler, torch.amp.GradScaler) else {}
        self._scope = watch(model, optimizers, **{**known, **self._options})

    def _end(self) -> None:
        """Let go of the model and the optimizers."""
        if self._scope is not None:
            self._scope.close()
            self._trace, self._scope = self._scope.trace(), None
