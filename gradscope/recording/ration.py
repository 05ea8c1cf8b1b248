"""Ration: work in the user's loop that may take no more than a share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.004
"""Of the time since the recording began. There are two rations, for diagnosing and for saving:
together less than the one per cent that is promised, as a piece may take longer than the last."""

GUESS = 0.02
"""Seconds that the first piece is taken to need, before any was measured."""


class Ration:
    """Measures what pieces of work took, and says when the next fits into the share.

    Args:
        clock: seconds that only go on.
        guess: what the first piece is taken to need; of 0 it is due at once.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, *, guess: float = GUESS
    ) -> None:
        self._clock = clock
        self._began = clock()
        self._spent = 0.0
        self._next = guess

    def due(self) -> bool:
        """Whether another piece like the last one keeps all of them within the share."""
        return self._spent + self._next <= SHARE * (self._clock() - self._began)

    def spend(self, work: Callable[[], None]) -> None:
        """Do a piece of work and note what it took."""
        before = self._clock()
        try:
            work()
        finally:
            self._next = self._clock() - before
            self._spent += self._next

    def add(self, seconds: float) -> None:
        """Add to the last piece what was done for it elsewhere."""
        self._next += seconds
        self._spent += seconds
