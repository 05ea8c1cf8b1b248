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
from gradscope.recording.saving import Saving
from gradscope.trace.structure import Structure
from gradscope.trace.table import Trace

Log = Callable[[dict[str, float], int], Any]
"""Called with names and values, and the step that they are of."""


VERDICT = "gradscope/total/verdict"


class Live:
    """Tells each recorded step when its numbers have arrived on the host.

    Args:
        log: the user's function, if there is one.
        detail: what it is told of.
        judging: diagnoses, if somebody is to be told.
        saving: writes, if somebody asked for it.
    """

    def __init__(
        self, log: Log | None, detail: Detail, judging: Judging | None, saving: Saving | None
    ) -> None:
        self._log = Listener("log", log, "wandb.log") if log is not None else None
        self._judging = judging
        self._saving = saving
        self._readable = Readable(detail)
        self._waiting: deque[tuple[Row, Sequence[Copy]]] = deque()
        self._told = 0

    def add(self, row: Row, copies: Sequence[Copy]) -> None:
        """Take a step that was just recorded."""
        self._waiting.append((row, copies))

    def tell(
        self, buffer: StatisticsBuffer, structure: Structure | None, trace: Callable[[], Trace]
    ) -> None:
        """Tell the steps whose numbers have arrived.

        Args:
            buffer: whose steps they are.
            structure: of the network, as far as it is known.
            trace: makes a trace of the steps whose numbers have arrived.
        """
        before = self._told
        self._pass_on(buffer, structure, wait=False)
        if self._told == before:
            return
        if self._judging is not None:
            self._judging.look(trace)
        if self._saving is not None:
            self._saving.look(trace)

    def end(
        self,
        buffer: StatisticsBuffer,
        structure: Structure | None,
        trace: Callable[[], Trace],
        steps: int,
    ) -> None:
        """Wait for the last numbers, tell them, and judge the whole training of so many steps."""
        self._pass_on(buffer, structure, wait=True)
        if self._judging is None:
            return
        self._judging.look(trace, last=True)
        if self._log is not None and self._told and self._judging.verdict is not None:
            self._log({VERDICT: self._judging.verdict}, steps)

    def close(self, trace: Trace) -> None:
        """Save what the whole training left."""
        if self._saving is not None:
            self._saving.close(trace)

    def _pass_on(
        self, buffer: StatisticsBuffer, structure: Structure | None, *, wait: bool
    ) -> None:
        while self._waiting:
            row, copies = self._waiting[0]
            if not wait and not all(copy.has_arrived() for copy in copies):
                return
            self._waiting.popleft()
            fill(row, copies)
            self._told += 1
            if self._log is not None:
                numbers = self._readable.of(row, buffer.columns, structure)
                if self._judging is not None and self._judging.verdict is not None:
                    numbers[VERDICT] = self._judging.verdict
                self._log(numbers, row.step.step)
