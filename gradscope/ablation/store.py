"""Store: results on disk, one folder per cell; Study: all of them, read back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradscope.errors import ConfigError
from gradscope.trace import Trace

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from gradscope.ablation.grid import Cell, Grid

FORMAT = 1
"""Of the files on disk; a newer one is refused rather than misread."""

_TEXT = ("utf-8", "surrogatepass")
"""Encoding of text that came from anywhere, file names among it."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What files that were damaged or edited by hand raise when they are read."""

Status = Literal["done", "diverged", "failed", "running", "pending"]
"""``diverged``: the loss became non-finite, the trace ends there; ``failed``: it raised."""


@dataclass(frozen=True)
class Epoch:
    """What was measured at the end of one epoch."""

    epoch: int
    """From 1."""
    step: int
    """Optimizer steps taken so far."""
    train_loss: float
    """Mean over the epoch's batches."""
    train_accuracy: float
    """Share of the epoch's training images, judged as they were trained on, 0 to 1: by weights that
    were still changing, in training mode."""
    val_loss: float
    val_accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    """Counts over the validation images: rows are true classes, columns predicted ones."""
    duration_s: float
    fit_loss: float = math.nan
    """Of a fixed part of the training images in evaluation mode, as many as are in validation:
    what may be held against ``val_loss``. NaN in results of before it was measured."""
    fit_accuracy: float = math.nan


@dataclass(frozen=True)
class History:
    """Loss and accuracy of one cell."""

    step_loss: tuple[float, ...] = ()
    """Training loss of each step, from step 0; non-finite values are kept."""
    epochs: tuple[Epoch, ...] = ()


@dataclass(frozen=True)
class CellResult:
    """The outcome of one cell; the trace is beside it on disk."""

    id: str
    factors: dict[str, Any]
    seed: int
    status: Status
    config: dict[str, Any]
    """The resolved configuration, JSON types."""
    history: History = field(default_factory=History)
    classes: tuple[str, ...] = ()
    error: str = ""
    """One line, for ``failed`` and ``diverged``."""
    traceback: str = ""
    n_parameters: int = 0
    images_per_s: float = 0.0
    """Training images per second, evaluation not counted."""
    duration_s: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, git revision, threads, machine; JSON types."""
    trace_path: Path | None = None
    """Where the trace lies, for ``done`` and ``diverged``."""

    def trace(self) -> Trace:
        """Read the trace of this cell from disk."""
        if self.trace_path is None:
            raise FileNotFoundError(self.id)
        return Trace.load(self.trace_path)


@dataclass(frozen=True)
class Study:
    """A grid with all its results, as a report reads it."""

    name: str
    factors: dict[str, tuple[Any, ...]]
    """Name of each factor -> its values, in the order of the grid."""
    results: tuple[CellResult, ...]
    """One per cell of the grid, in the grid's order, pending ones included."""
    grid: dict[str, Any] = field(default_factory=dict)
    """The grid as it was written, JSON types."""
    path: Path | None = None
    """The folder it was read from."""


@dataclass(frozen=True)
class Store:
    """The folder of one study: ``grid.json``, and a folder per cell that was run.

    A cell's folder holds ``config.json``, ``result.json`` and ``trace.parquet``, or where it failed
    ``traceback.txt``.
    It appears whole or not at all, so that whoever reads or is killed meets no half of it. NaN and
    Infinity stand in the JSON as Python writes them.

    Example:
        >>> study = Store.load("runs/hw5")  # doctest: +SKIP
    """

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder; a killed run holds no lock.

        Raises:
            ConfigError: another run is at work here, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ConfigError(
                f"{self.root}: another run is at work here; wait for it, or give another folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self.root}: cannot be written ({error.strerror or error}); give another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def prepare(self, grid: Grid) -> None:
        """Write down which cells the grid has, and remove what a killed run left unfinished.

        Raises:
            ConfigError: the folder holds another study.
        """
        path = self.root / "grid.json"
        self.root.mkdir(parents=True, exist_ok=True)
        if path.exists():
            try:
                known = _read_grid(path)["name"]
            except ConfigError:
                known = grid.name  # damaged: written anew, the results are beside it
            if known != grid.name:
                raise ConfigError(
                    f"{self.root}: holds the study '{known}', not '{grid.name}'; "
                    "give another folder"
                )
        for left in [*self.root.glob(".tmp-*"), *self.root.glob(".old-*")]:
            shutil.rmtree(left, ignore_errors=True)
        described = {
            "format": FORMAT,
            "name": grid.name,
            "factors": {name: list(values) for name, values in grid.factors.items()},
            "cells": [_described(cell) for cell in grid.cells()],
            "grid": grid.source,
        }
        temporary = self.root / f".{path.name}.{uuid.uuid4().hex[:8]}"
        _write_json(temporary, described)
        temporary.replace(path)

    def save(self, result: CellResult, trace: Trace | None) -> None:
        """Store the outcome of a cell, whole or not at all; an earlier one is replaced.

        Args:
            result: what to store; its ``trace_path`` is not.
            trace: None for a cell that failed.
        """
        mark = f"{result.id}-{uuid.uuid4().hex[:8]}"
        temporary, old = self.root / f".tmp-{mark}", self.root / f".old-{mark}"
        temporary.mkdir(parents=True)
        try:
            fields = dataclasses.asdict(result)
            del fields["trace_path"]
            _write_json(temporary / "config.json", fields.pop("config"))
            if told := fields.pop("traceback"):
                (temporary / "traceback.txt").write_bytes(told.encode(*_TEXT))
            _write_json(temporary / "result.json", {"format": FORMAT, **fields})
            if trace is not None:
                _flush(trace.save(temporary / "trace.parquet"))
            folder = self.root / result.id
            if folder.exists():
                os.replace(folder, old)  # noqa: PTH105 - Path.replace, said of folders
            os.replace(temporary, folder)  # noqa: PTH105
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def read(self, cell: Cell) -> CellResult:
        """What is stored of a cell: its result, else ``pending``, or ``failed`` when damaged."""
        return self._read(_described(cell))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Study:
        """Read a study, whatever state it is in.

        Cells that were not run are ``pending``; those whose files are damaged are ``failed``, and
        say so. Results of cells that the grid no longer has are not shown.

        Raises:
            ConfigError: the folder holds no study.
        """
        root = Path(path)
        described = _read_grid(root / "grid.json")
        store = cls(root)
        return Study(
            name=described["name"],
            factors=described["factors"],
            results=tuple(store._read(cell) for cell in described["cells"]),
            grid=described["grid"],
            path=root,
        )

    def _read(self, cell: dict[str, Any]) -> CellResult:
        unread = CellResult(**cell, status="pending")
        folder = self.root / unread.id
        if not folder.is_dir():
            return unread
        try:
            return _stored(folder, unread)
        except _UNREADABLE as error:
            told = f"{folder}: its files are damaged ({_reason(error)}); run the grid again"
            return dataclasses.replace(unread, status="failed", error=told)


def _stored(folder: Path, unread: CellResult) -> CellResult:
    fields = _read_json(folder / "result.json")
    _refuse_newer(fields.pop("format"))
    fields["config"] = _read_json(folder / "config.json")
    if (told := folder / "traceback.txt").is_file():
        fields["traceback"] = told.read_bytes().decode(*_TEXT)
    result = _adapter().validate_python({**fields, "factors": unread.factors})
    if result.id != unread.id:
        raise ValueError(f"result.json is of {result.id}")
    if result.status not in ("done", "diverged"):
        return result
    return dataclasses.replace(result, trace_path=_checked(folder / "trace.parquet"))


def _refuse_newer(number: int) -> None:
    if number > FORMAT:
        raise ValueError("written by a newer gradscope")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _described(cell: Cell) -> dict[str, Any]:
    """The fields of a result that are known before the cell is run."""
    config = cell.config.model_dump(mode="json")
    return {"id": cell.id, "factors": dict(cell.factors), "seed": config["seed"], "config": config}


def _read_grid(path: Path) -> dict[str, Any]:
    """The description of a study, checked."""
    root = path.parent
    if not path.is_file():
        what = "holds no study (no grid.json)" if root.is_dir() else "no such folder"
        inside = sorted(found.parent for found in root.glob("*/grid.json"))
        example = inside[0] if inside else "runs/hw5"
        raise ConfigError(f"{root}: {what}; give the folder that run-grid wrote, as {example}")
    try:
        return _grid_of(_read_json(path))
    except _UNREADABLE as error:
        raise ConfigError(
            f"{path}: damaged ({_reason(error)}); run the grid again to write it anew"
        ) from error


def _grid_of(described: dict[str, Any]) -> dict[str, Any]:
    _refuse_newer(described["format"])
    for cell in described["cells"]:
        CellResult(**cell, status="pending")
    return {
        "name": str(described["name"]),
        "factors": {name: tuple(values) for name, values in described["factors"].items()},
        "cells": described["cells"],
        "grid": dict(described["grid"]),
    }


def _checked(path: Path) -> Path:
    """The path of a trace that is there and whole, as far as its ends tell."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        if (start, file.read(4)) != (b"PAR1", b"PAR1"):
            raise ValueError(f"{path.name} is cut off")
    return path


@cache
def _adapter() -> TypeAdapter[CellResult]:
    from pydantic import TypeAdapter

    return TypeAdapter(CellResult)


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} holds no mapping")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until the file is on the disk, so that a power cut leaves no empty one behind."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
