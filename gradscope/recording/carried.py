"""Carried: what the gradients of parameters held already when a backward pass began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.recording import reductions
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.meters import by_device

THOROUGH = 4, 8
"""The first so many recorded steps, and every so many later ones, are looked at thoroughly."""

TWICE = 3, 32
"""The same of the steps in which the gradients are read again before the optimizer's step, whatever
the marks say: it costs as much as the first reading."""


class Carried:
    """The least that each gradient held when a backward pass of the step began.

    The least, because a loop that adds up micro-batches begins with nothing, and so does one that
    empties the gradients between two passes; only where nobody ever emptied them is some left.
    """

    def __init__(self, buffer: StatisticsBuffer) -> None:
        self.thorough = False
        """Whether this step is one of those that are looked at thoroughly."""
        self.twice = False
        """Whether its gradients are read a second time before the optimizer's step."""
        self._parameters: Sequence[Tensor] = ()
        self._columns: Sequence[int] = ()
        self._buffer = buffer
        self._recorded = 0
        self._pending: list[int] = []

    def cover(self, parameters: Sequence[Tensor], columns: Sequence[int]) -> None:
        """Look at these from now on; 0 is the column of one that gets no gradient."""
        self._parameters, self._columns = parameters, columns
        self._pending = [i for i, column in enumerate(columns) if column]

    def begin(self) -> None:
        """Start a step."""
        self.thorough, self.twice = (
            self._recorded < first or self._recorded % every == 0
            for first, every in (THOROUGH, TWICE)
        )
        if self.thorough:
            self._pending = [i for i, column in enumerate(self._columns) if column]

    def end(self) -> None:
        """Count a step that was recorded."""
        self._recorded += 1

    def before_backward(self) -> None:
        """Look at the gradients as they are, before the pass adds to them."""
        if not self.thorough:
            return
        left = [i for i in self._pending if self._parameters[i].grad is not None]
        if len(left) < len(self._pending):
            kept = set(left)
            for device, mine in by_device(
                self._parameters, [i for i in self._pending if i not in kept]
            ):
                columns = [self._columns[i] for i in mine]
                zeros = self._buffer.constant(device, [0.0] * len(columns))
                self._buffer.put(device, "carried", columns, zeros)
            self._pending = left
        for device, mine in by_device(self._parameters, left):
            self._look(device, mine)

    def consumed(self, parameters: set[int]) -> None:
        """An optimizer takes some parameters, by identity: what comes later no longer counts."""
        self._pending = [i for i in self._pending if id(self._parameters[i]) not in parameters]

    def _look(self, device: torch.device, indices: list[int]) -> None:
        columns = [self._columns[i] for i in indices]
        grads = [
            reductions.local(g) for i in indices if (g := self._parameters[i].grad) is not None
        ]
        samples = [reductions.sample(g) for g in grads]
        shares = [
            (g.numel() / max(s.numel(), 1)) ** 0.5 for g, s in zip(grads, samples, strict=True)
        ]
        norms = reductions.norms(samples) * self._buffer.constant(device, shares)
        known = self._buffer.get(device, "carried", columns)  # NaN at the first look
        self._buffer.put(device, "carried", columns, torch.fmin(known, norms))
