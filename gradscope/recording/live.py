"""Live: what is told while a network trains, in the thread of its loop, without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gradscope.recording.buffer import Row, StatisticsBuffer, fill
from gradscope.recording.copies import Copy
from gradscope.recording.judging import Judging
from gradscope.recording.listener import Listener
from gradscope.recording.readable import Detail, Readable
from gradscope.trace.structure import Structure
from gradscope.trace.table import Trace

Log = Callable[[dict[str, float], int], Any]
"""Called with names and values, and the step that they are of."""


class Live:
    """Tells each recorded step when its numbers have arrived on the host."""

    def __init__(
        self, log: Log | None, detail: Detail, on_finding: Callable[[Any], Any] | None
    ) -> None:
        self._log = Listener("log", log) if log is not None else None
        self._judging = Judging(on_finding)
        self._readable = Readable(detail)
        self._waiting: deque[tuple[Row, Sequence[Copy]]] = deque()

    def add(self, row: Row, copies: Sequence[Copy]) -> None:
        """Take a step that was just recorded."""
        self._waiting.append((row, copies))

    def tell(
        self,
        buffer: StatisticsBuffer,
        structure: Structure | None,
        trace: Callable[[], Trace],
        *,
        last: bool = False,
    ) -> None:
        """Tell the steps whose numbers have arrived; at last, all of them.

        Args:
            buffer: whose steps they are.
            structure: of the network, as far as it is known.
            trace: makes a trace of the steps whose numbers have arrived.
            last: whether the training is over, so that it may wait.
        """
        told = False
        while self._waiting:
            row, copies = self._waiting[0]
            if not last and not all(copy.has_arrived() for copy in copies):
                return
            self._waiting.popleft()
            fill(row, copies)
            if self._log is not None:
                numbers = self._readable.of(row, buffer.columns, structure)
                if self._judging.verdict is not None:
                    numbers["gradscope/total/verdict"] = self._judging.verdict
                self._log(numbers, row.step.step)
            told = True
        if told or last:
            self._judging.look(trace, last=last)
