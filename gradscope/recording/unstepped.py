"""Unstepped: whether weights move and no step of the optimizer is seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.recording import reductions

MANY = 20
"""Backward passes before the first step after which weights that moved were stepped unseen: a loop
may add up more passes, and then nothing moves."""


class Unstepped:
    """Counts the backward passes before the first step; some weights tell whether they moved."""

    def __init__(self) -> None:
        self._passes = 0
        self._before: list[tuple[Tensor, Tensor]] = []

    def after_backward(self, parameters: Sequence[Tensor]) -> bool:
        """Whether, at the last of many passes, a weight is another than after the first.

        Args:
            parameters: those that have a gradient.

        Returns:
            True once at most. A device is waited for in that pass only.
        """
        self._passes += 1
        if self._passes == 1:
            kept = [p for p in parameters if reductions.is_readable(p)]
            self._before = [(p, reductions.sample(p).clone()) for p in kept]
        if self._passes != MANY:
            return False
        before, self._before = self._before, []
        return any(not torch.equal(reductions.sample(p), was) for p, was in before)

    def forget(self) -> None:
        """A step was seen."""
        self._before = []
