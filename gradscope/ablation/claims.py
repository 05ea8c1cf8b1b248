"""Claims: which of several runs on one folder trains a cell; one whose owner died is taken over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

HEARTBEAT_S = 10.0
"""How often the owner of a claim says that it is alive."""

PATIENCE_S = 60.0
"""After so long without a heartbeat the owner, on another machine, counts as dead."""

_SAME_S = 5.0
"""Two readings of the time when a process was started differ by less: the clock may be set."""


@contextmanager
def claimed(root: Path, cell: str) -> Iterator[bool]:
    """Claim a cell for a while; the file beside the cells holds host and process.

    Args:
        root: the folder of the study.
        cell: id of the cell.

    Yields:
        Whether it is ours now; another process has it else.
    """
    path = _path(root, cell)
    with _lock(root):
        mine = not is_claimed(root, cell)
        if mine:
            path.write_text(json.dumps(_owner()))
    if not mine:
        yield False
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        ended.set()
        beating.join()
        path.unlink(missing_ok=True)


def _lock(root: Path) -> FileLock:
    """To be held while claims are made or removed."""
    from filelock import FileLock

    return FileLock(root / ".claims.lock")


def is_claimed(root: Path, cell: str) -> bool:
    """Whether a process that lives has claimed a cell."""
    path = _path(root, cell)
    try:
        owner = json.loads(path.read_text())
        age_s = _now(root) - path.stat().st_mtime
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # half written by one that was killed
        return False
    return _lives(owner, age_s)


def sweep(root: Path) -> None:
    """Remove claims whose owners died, and what they had only begun to write."""
    with _lock(root):  # one that is just being written is no dead one
        for path in root.glob(".claim-*"):
            if not is_claimed(root, path.name.removeprefix(".claim-")):
                path.unlink(missing_ok=True)
        for left in [*root.glob(".tmp-*"), *root.glob(".old-*")]:
            cell = left.name.split("-", 1)[1].rpartition("-")[0]
            if not is_claimed(root, cell):
                shutil.rmtree(left, ignore_errors=True)


def _lives(owner: Any, age_s: float) -> bool:
    import psutil

    if not isinstance(owner, dict):
        return False
    if owner.get("host") != socket.gethostname():
        return age_s < PATIENCE_S
    try:
        started: float = psutil.Process(owner["pid"]).create_time()
        return bool(abs(started - owner["started"]) < _SAME_S)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _owner() -> dict[str, Any]:
    import psutil

    started = psutil.Process().create_time()  # tells this process from a later one of its number
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _now(root: Path) -> float:
    """The time by the clock that stamps files here, which may be another machine's."""
    mark = root / f".clock-{uuid.uuid4().hex[:8]}"
    mark.touch()
    try:
        return mark.stat().st_mtime
    finally:
        mark.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with suppress(OSError):  # a hiccup of the network; patience is longer
            path.touch()


def _path(root: Path, cell: str) -> Path:
    return root / f".claim-{cell}"
