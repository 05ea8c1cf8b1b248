"""Saving: the trace of a running training on disk, whole at any moment."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradscope.errors import RecorderError
from gradscope.recording.guard import say, strict
from gradscope.recording.ration import Ration
from gradscope.trace import file
from gradscope.trace.table import Trace, nothing

LEFT_S = 60.0
"""Age of a temporary file from which on nobody writes it any more: its process was killed."""


class Saving:
    """Writes the whole trace beside its place and puts it there, as often as the ration allows.

    The table is bounded by thinning, so a write is too. It happens in a thread of its own; the
    loop makes the trace and goes on. The first recorded step is written at once.

    Args:
        path: where to; missing folders are made, what is there stays until the first write.

    Raises:
        RecorderError: nothing can be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._temporary = _checked(path)
        self._ration = Ration(guess=0.0)
        self._writer: threading.Thread | None = None
        self._took = 0.0
        self._fault: Exception | None = None
        self._warned = False

    def look(self, trace: Callable[[], Trace]) -> None:
        """Write, if that is due and the last write has ended."""
        if self._writer is not None and self._writer.is_alive():
            return
        self._settle()
        if self._ration.due():
            self._ration.spend(lambda: self._begin(trace()))

    def close(self, trace: Trace) -> None:
        """Write the trace of the whole training; waits for it."""
        if self._writer is not None:
            self._writer.join()
        self._settle()
        self._write(trace)
        self._settle()

    def _begin(self, trace: Trace) -> None:
        running = dataclasses.replace(trace, metadata={**trace.metadata, "running": True})
        self._writer = threading.Thread(
            target=self._write, args=(running,), name="gradscope-saving"
        )
        try:
            self._writer.start()
        except RuntimeError:  # the process may have no more threads
            self._writer = None
            self._write(running)

    def _write(self, trace: Trace) -> None:
        began = time.thread_time()
        try:
            file.write(trace, self._path, self._temporary)
        except Exception as fault:  # noqa: BLE001 - told by the loop's own thread
            self._fault = fault
        self._took = time.thread_time() - began

    def _settle(self) -> None:
        """Take what the last write took, and the fault that it ended in."""
        self._writer = None
        self._ration.add(self._took)
        fault, self._fault, self._took = self._fault, None, 0.0
        if fault is None:
            return
        if strict() and not isinstance(fault, OSError):
            raise fault
        if not self._warned:
            self._warned = True
            say(
                f"save={self._path} could not be written ({_reason(fault)}); the recording goes "
                "on, and it is tried again"
            )


def _checked(path: Any) -> tuple[Path, Path]:
    """The path and a temporary one beside it, once a trace has been written there."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise RecorderError(
            f"save must be the path of a file, got {path!r}; give one such as 'run.parquet'"
        )
    place = Path(path).absolute()  # a training may change its folder
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        reason = "it is no file" if place.exists() and not place.is_file() else ""
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f".{place.name}.*.tmp"):
            if time.time() - left.stat().st_mtime > LEFT_S:
                left.unlink(missing_ok=True)
        # All that writing loads is loaded now, not within a step.
        file.write(nothing(), temporary.with_suffix(".try"), temporary)
        temporary.with_suffix(".try").unlink()
    except (ImportError, OSError, ValueError) as fault:
        reason = _reason(fault)
    if reason:
        raise RecorderError(
            f"save={path}: cannot be written ({reason}); give another file, such as 'run.parquet'"
        )
    return place, temporary


def _reason(fault: Exception) -> str:
    told = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
    return " ".join(told.split())[:200] or type(fault).__name__
