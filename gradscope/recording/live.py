"""Live: what is told while a network trains, in the thread of its loop, without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gradscope.errors import RecorderError, nearest
from gradscope.recording.buffer import Row, StatisticsBuffer, fill
from gradscope.recording.copies import Copy
from gradscope.recording.guard import say
from gradscope.recording.readable import DETAILS, Detail, Readable
from gradscope.trace.structure import Structure

Log = Callable[[dict[str, float], int], Any]
"""Called with names and values, and the step that they are of."""


class Listener:
    """Somebody's function; one that raises is warned about and called no more."""

    def __init__(self, argument: str, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise RecorderError(
                f"{argument} must be a function, got {type(function).__name__}; "
                "give one such as wandb.log"
            )
        self._argument = argument
        self._function: Callable[..., Any] | None = function

    def __call__(self, *args: Any) -> None:
        """Call it, unless it raised before."""
        if self._function is None:
            return
        try:
            self._function(*args)
        except Exception as fault:  # noqa: BLE001 - the training goes on without it
            self._function = None
            told = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
            say(f"{self._argument} raised and is called no more: {told}")


class Live:
    """Tells each recorded step when its numbers have arrived on the host."""

    def __init__(self, log: Log, detail: str) -> None:
        if detail not in DETAILS:
            raise RecorderError(f"unknown detail '{detail}'; {nearest(detail, DETAILS)}")
        self._log = Listener("log", log)
        chosen: Detail = "parameters" if detail == "parameters" else "blocks"
        self._readable = Readable(chosen)
        self._waiting: deque[tuple[Row, Sequence[Copy]]] = deque()

    def add(self, row: Row, copies: Sequence[Copy]) -> None:
        """Take a step that was just recorded."""
        self._waiting.append((row, copies))

    def tell(
        self, buffer: StatisticsBuffer, structure: Structure | None, *, wait: bool = False
    ) -> None:
        """Tell the steps whose numbers have arrived; all of them where it may wait."""
        while self._waiting:
            row, copies = self._waiting[0]
            if not wait and not all(copy.has_arrived() for copy in copies):
                return
            self._waiting.popleft()
            fill(row, copies)
            self._log(self._readable.of(row, buffer.columns, structure), row.step.step)
