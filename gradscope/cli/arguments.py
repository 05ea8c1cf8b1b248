"""Checks of arguments that need no torch: a wrong one is answered before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradscope.errors import ConfigError, TraceError

_PARQUET = b"PAR1"
"""With which such a file begins and ends."""


def writable(page: Path) -> Path:
    """The path of a report, once it is known that it can be written; nothing is made yet.

    Raises:
        ConfigError: it cannot be written.
    """
    import tempfile

    place = next(folder for folder in page.absolute().parents if folder.exists())
    reason = "it is a folder" if page.is_dir() else ""
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(
            f"{page}: cannot be written ({reason}); give another file, for example flow.html"
        )
    return page


def check_trace(path: Path) -> None:
    """See that a file may be a trace.

    Raises:
        TraceError: it is missing, or no Parquet file.
    """
    if not path.is_file():
        raise TraceError(f"{path}: no such file; give a Parquet file that Trace.save() wrote")
    try:
        content = path.read_bytes()[: len(_PARQUET)]
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if content != _PARQUET:
        raise TraceError(f"{path}: no Parquet file; give a file that Trace.save() wrote")


def check_sources(paths: Sequence[Path]) -> None:
    """See that what a report is to be drawn from is there.

    Raises:
        GradscopeError: a path is neither the folder of a study nor, alone, a trace.
    """
    from gradscope.ablation.store import Store

    if len(paths) == 1 and paths[0].is_file():
        check_trace(paths[0])
        return
    for path in paths:
        if path.exists() and not path.is_dir():
            raise ConfigError(
                f"{path}: is a file; give folders that run-grid wrote, or one trace alone"
            )
        Store(path).check()
