"""Store: results on disk, one folder per cell; Study: all of them, read back."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.ablation.claims import sweep
from gradscope.errors import ConfigError
from gradscope.study.results import ENDED, CellResult, Study

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from gradscope.ablation.grid import Cell, Grid
    from gradscope.trace.table import Trace

FORMAT = 1
"""Of the files on disk; a newer one is refused rather than misread."""

_TEXT = ("utf-8", "surrogatepass")
"""Encoding of text that came from anywhere, file names among it."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What files that were damaged or edited by hand raise when they are read."""


@dataclass(frozen=True)
class Store:
    """The folder of one study: ``grid.json``, and a folder per cell that was run.

    A cell's folder holds ``config.json``, ``result.json`` and ``trace.parquet``, or where it failed
    ``traceback.txt``, and in ``files`` what its function wrote.
    It appears whole or not at all, so that whoever reads or is killed meets no half of it. NaN and
    Infinity stand in the JSON as Python writes them.

    Example:
        >>> study = Store.load("runs/hw5")  # doctest: +SKIP
    """

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder for a moment; a killed run holds no lock.

        Raises:
            ConfigError: the folder cannot be written.
        """
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire()
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
        self.refuse_others(grid.name)
        self.root.mkdir(parents=True, exist_ok=True)
        sweep(self.root)
        described = {
            "format": FORMAT,
            "name": grid.name,
            "factors": {name: list(values) for name, values in grid.factors.items()},
            "cells": [_described(cell) for cell in grid.cells()],
            "grid": grid.source,
        }
        temporary = self.root / f".{path.name}.{uuid.uuid4().hex[:8]}"
        _write_json(temporary, described)
        _flush([temporary])
        temporary.replace(path)

    @contextmanager
    def marked(self) -> Iterator[str]:
        """For a while, a file that tells this folder from one at the same path on another machine.

        Yields:
            Its name, for `has`.
        """
        path = self.root / f".mark-{uuid.uuid4().hex}"
        path.touch()
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)

    def has(self, mark: str) -> bool:
        """Whether the folder that was marked, on whatever machine, is the one that lies here."""
        return (self.root / mark).is_file()

    def pack(self, cell: str) -> dict[str, bytes]:
        """The files of a stored cell: their paths below its folder, and what they hold."""
        folder = self.root / cell
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def unpack(self, cell: str, files: Mapping[str, bytes]) -> None:
        """Store a cell from its files, whole or not at all.

        Args:
            cell: its id.
            files: as `pack` gave them, on whatever machine.
        """
        with self._replacing(cell) as temporary:
            for name, content in files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            _flush([temporary / name for name in files])

    def refuse_others(self, name: str) -> None:
        """Refuse a folder that holds another study.

        Args:
            name: of the grid that is to be run here.

        Raises:
            ConfigError: the folder holds another study, or is none.
        """
        path = self.root / "grid.json"
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{self.root}: is a file; give another folder")
        if not path.exists():
            return
        try:
            known = _read_grid(path)["name"]
        except ConfigError:
            return  # damaged: written anew, the results are beside it
        if known != name:
            raise ConfigError(
                f"{self.root}: holds the study '{known}', not '{name}'; give another folder"
            )

    def work_folder(self, cell: str, mark: str) -> Path:
        """Where a cell may keep checkpoints until it is stored; others of its are removed.

        Args:
            cell: its id.
            mark: tells what it is trained with; checkpoints of other code are of no use.
        """
        wanted = self.root / f".work-{cell}-{mark}"
        for left in self.root.glob(f".work-{cell}-*"):
            if left != wanted:
                shutil.rmtree(left, ignore_errors=True)
        return wanted

    def save(self, result: CellResult, trace: Trace | None, files: Path | None = None) -> None:
        """Store the outcome of a cell, whole or not at all; an earlier one is replaced.

        Args:
            result: what to store; its ``trace_path`` is not.
            trace: None for a cell that failed, or watched nothing.
            files: folder that becomes a part of the result, where there is one.

        Raises:
            OSError: it cannot be written.
        """
        with self._replacing(result.id) as temporary:
            fields = dataclasses.asdict(result)
            del fields["trace_path"]
            _write_json(temporary / "config.json", fields.pop("config"))
            if told := fields.pop("traceback"):
                (temporary / "traceback.txt").write_bytes(told.encode(*_TEXT))
            _write_json(temporary / "result.json", {"format": FORMAT, **fields})
            if trace is not None:
                trace.save(temporary / "trace.parquet")
            _flush(list(temporary.iterdir()))
            if files is not None and files.is_dir():
                os.replace(files, temporary / "files")  # noqa: PTH105 - Path.replace, of folders

    @contextmanager
    def _replacing(self, cell: str) -> Iterator[Path]:
        """A folder that takes the place of a cell's when all went well."""
        mark = f"{cell}-{uuid.uuid4().hex[:8]}"
        temporary, old = self.root / f".tmp-{mark}", self.root / f".old-{mark}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            folder = self.root / cell
            if folder.exists():
                os.replace(folder, old)  # noqa: PTH105 - Path.replace, said of folders
            os.replace(temporary, folder)  # noqa: PTH105
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def read(self, cell: Cell) -> CellResult:
        """What is stored of a cell: its result, else ``pending``, or ``failed`` when damaged."""
        return self._read(_described(cell))

    def check(self) -> None:
        """See that the folder holds a study.

        Raises:
            ConfigError: it holds none, or a damaged one.
        """
        _read_grid(self.root / "grid.json")

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
    if result.status not in ENDED or not result.is_traced:
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


def _flush(paths: Sequence[Path]) -> None:
    """Wait until files are on the disk, so that a power cut leaves no empty ones behind.

    For all at once: the disk takes as long for several as for one.
    """
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_synced, paths))


def _synced(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
