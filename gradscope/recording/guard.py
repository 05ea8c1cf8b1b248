"""Guard: what stands between a fault of the recorder and the training that it watches."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from gradscope.errors import GradscopeWarning, one_line
from gradscope.recording.unseen import observed, unobserved, unseen_by_dynamo

_LIMIT = 200
"""Most characters of a fault's own message that are passed on."""


def strict() -> bool:
    """Whether faults are to be raised: `GRADSCOPE_STRICT=1`, as in the tests of the recorder."""
    return os.environ.get("GRADSCOPE_STRICT") == "1"


def say(line: str) -> None:
    """Warn, and do not raise in the user's loop where warnings are made errors."""
    try:
        warnings.warn(f"gradscope: {line}", GradscopeWarning, stacklevel=2)
    except GradscopeWarning:
        if strict():
            raise
        with suppress(OSError, ValueError, AttributeError):  # nobody may listen
            sys.stderr.write(f"gradscope: {line}\n")


class Guard:
    """Stands around everything that runs inside the user's calls; one a scope.

    The first fault takes the recorder out of the way for good.
    """

    def __init__(self, stand_aside: Callable[[str], None]) -> None:
        self.faulty = False
        self._stand_aside = weakref.WeakMethod(stand_aside)

    def wrap(self, where: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with nothing raised; after a fault it does nothing.

        Args:
            where: what it does, for the warning.
            function: to be called by torch within the user's calls.
        """

        def guarded(*args: Any) -> Any:
            if self.faulty:
                return None
            try:
                return unobserved(function, *args)
            except Exception as fault:  # noqa: BLE001 - that is what a guard is for
                self.trip(where, fault)
                return None

        return _hidden(guarded)

    def wrap_reader(self, where: str, read: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """The same of what takes the statistics of a tensor; a plain one takes a shorter way."""

        def guarded(tensor: Tensor) -> None:
            if self.faulty:
                return
            try:
                if type(tensor) is Tensor and not observed():
                    read(tensor)
                else:
                    unobserved(read, tensor)
            except Exception as fault:  # noqa: BLE001 - that is what a guard is for
                self.trip(where, fault)

        return _hidden(guarded)

    def trip(self, where: str, fault: Exception) -> None:
        """Take the recorder out of the way; raise instead where `strict`."""
        if strict():
            raise fault
        if self.faulty:
            return
        self.faulty = True
        stand_aside = self._stand_aside()
        if stand_aside is not None:
            with suppress(Exception):  # what is left undone harms nobody: every entry is guarded
                stand_aside(_described(where, fault))


def _hidden(guarded: Callable[..., Any]) -> Callable[..., Any]:
    """The function, hidden from Dynamo."""
    unseen_by_dynamo(guarded, callees=True)
    guarded._torchdynamo_disable = True  # type: ignore[attr-defined]  # what it asks, if it traces
    return guarded


def _described(where: str, fault: Exception) -> str:
    try:
        message = one_line(fault)
    except Exception:  # noqa: BLE001 - somebody's exception, whose text is not worth another fault
        message = ""
    message = message if len(message) <= _LIMIT else f"{message[:_LIMIT]}..."
    return (
        f"recording stopped by a fault {where}: {type(fault).__name__}: {message}"
        f"{_place(fault.__traceback__)}; the training goes on, and the trace keeps the steps "
        "before. GRADSCOPE_STRICT=1 raises instead"
    )


def _place(traceback: TracebackType | None) -> str:
    """The last line of ours that a fault went through."""
    ours, place = Path(__file__).parents[1], ""
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if ours in file.parents:
            place = f" ({file.relative_to(ours.parent).as_posix()}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place
