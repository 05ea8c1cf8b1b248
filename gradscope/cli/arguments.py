"""Arguments of several commands, and checks that need no torch: a wrong one is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.errors import ConfigError, TraceError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

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


def jobs_of(text: str | None) -> tuple[int | None, list[str]]:
    """What ``--jobs`` says.

    Returns:
        Cells at a time, None where that is left open; the setting of the grid that stands for
        ``auto``.

    Raises:
        ConfigError: it is neither a number from 1 nor ``auto``.
    """
    if text is None:
        return None, []
    if text == "auto":
        return None, ["resources.cpus=auto"]
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--jobs {text}: give 1 or more, or auto")
    return int(text), []


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


def may_come(path: Path) -> None:
    """See that a file is a trace, or that one can still be written there.

    Raises:
        ConfigError: it never can.
        TraceError: it is there, and no Parquet file.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the file that watch(save=...) writes")
    if path.exists():
        check_trace(path)


def check_sources(paths: Sequence[Path]) -> None:
    """See that what a report is to be drawn from is there.

    Raises:
        GradscopeError: a path is neither the folder of a study nor a trace, or both are given.
    """
    from gradscope.ablation.store import Store

    files = [path for path in paths if path.is_file()]
    for path in files:
        check_trace(path)
    if files and len(files) < len(paths):
        raise ConfigError(
            f"{files[0]}: is a file beside folders; give folders that run-grid wrote, or traces"
        )
    for path in paths if not files else ():
        Store(path).check()


def check_inputs(shapes: Sequence[str], batch: int, file: Path | None, grid: Path | None) -> None:
    """See that the inputs of a probe are named once, and that they may be there.

    Raises:
        ConfigError: none or several of them are given, or one makes no sense.
    """
    if sum((bool(shapes), file is not None, grid is not None)) != 1:
        raise ConfigError(
            "give the inputs by one of --input C,H,W (random), --input-file FILE.pt or "
            "--grid FILE.yaml (the images it trains on)"
        )
    for text in shapes:
        shape_of(text, batch)
    if file is not None and not file.is_file():
        raise ConfigError(f"--input-file {file}: no such file; give a .pt or .npy file")
    if file is not None and file.suffix not in (".npy", ".pt", ".pth"):
        raise ConfigError(f"--input-file {file}: unknown suffix; valid: .npy, .pt, .pth")
    if grid is not None:
        from gradscope.ablation.grid import Grid

        Grid.load(grid, imported=False)


def shape_of(text: str, batch: int) -> tuple[int, ...]:
    """The shape of a batch, from that of one sample: ``3,64,64``.

    Raises:
        ConfigError: it is no list of positive integers.
    """
    try:
        shape = (batch, *(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise ConfigError(
            f"--input '{text}' with --batch {batch}: give the shape of one sample as positive "
            "integers, for example --input 3,64,64"
        )
    return shape


def argument(text: str) -> tuple[str, Any]:
    """``name=value`` for a factory; the value is YAML.

    Raises:
        ConfigError: it has another form.
    """
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--args '{text}': write name=value, for example --args depth=32")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--args '{text}': the value is not YAML; quote it") from error
