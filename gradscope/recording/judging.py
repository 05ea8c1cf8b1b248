"""Judging: the diagnosis of a run as far as it is, now and then while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscope.recording.guard import say, strict
from gradscope.recording.listener import Listener
from gradscope.recording.ration import Ration
from gradscope.trace.table import Trace

Follow = Callable[[Trace], tuple[int, tuple[Any, ...]]]
"""Diagnoses a run as far as it is: the verdict as a number, and what changed since."""


class Judging:
    """Tells what changed in the diagnosis, within a ration of the time.

    Args:
        on_finding: the user's function, if there is one.
        follow: diagnoses.
    """

    def __init__(self, on_finding: Callable[[Any], Any] | None, follow: Follow) -> None:
        self.verdict: float | None = None
        """The last one as a number; None before the first."""
        self._listener = (
            Listener("on_finding", on_finding, "print") if on_finding is not None else None
        )
        self._follow = follow
        self._ration = Ration()
        self._failed = False

    def look(self, trace: Callable[[], Trace], *, last: bool = False) -> None:
        """Diagnose, if that is due, or if it is the last chance."""
        if (last or self._ration.due()) and not self._failed:
            self._ration.spend(lambda: self._look(trace))

    def _look(self, trace: Callable[[], Trace]) -> None:
        try:
            verdict, changes = self._follow(trace())
        except Exception as fault:
            if strict():
                raise
            self._failed = True  # the recording goes on without a diagnosis
            say(f"the diagnosis ended while training: {type(fault).__name__}: {fault}")
            return
        self.verdict = float(verdict)
        for change in changes:
            if self._listener is not None:
                self._listener(change)
