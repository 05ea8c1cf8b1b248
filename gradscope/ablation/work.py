"""CellWork: what an engine does with a cell, and what becomes of those that it loses."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from gradscope.ablation.claims import claimed
from gradscope.ablation.grid import Cell
from gradscope.ablation.origin import origin_of
from gradscope.ablation.plan import Plan
from gradscope.ablation.progress import Progress
from gradscope.ablation.settings import StopConfig
from gradscope.ablation.store import Store
from gradscope.ablation.training import train_cell
from gradscope.data import DataConfig, Splits, load
from gradscope.engines.task import Event, out_of_memory
from gradscope.errors import ConfigError, GradscopeError, MachineError, no_space
from gradscope.study.results import ENDED, CellResult, History, Origin, Status
from gradscope.trace.table import Trace

_LEAST_FREE_BYTES = 1 << 20
"""With less, what a training function could not write is the disk's fault, whatever it raised."""


@dataclass(frozen=True)
class Packed:
    """A result from a machine that does not share the folder, with its files."""

    result: CellResult
    files: dict[str, bytes]


@dataclass(frozen=True)
class CellWork:
    """Trains a cell and stores what came of it, in whatever process an engine runs it."""

    store: Store
    cache_dir: Path | None = None
    objectives: Mapping[str, str] = field(default_factory=dict)
    stop: StopConfig | None = None
    mark: str = ""
    """Of the store; where another folder lies at its path, results travel back; empty: never."""

    def __call__(self, cell: Cell, tell: Callable[[Progress], None]) -> CellResult | Packed:
        """Train and store; what raises is stored as ``failed``.

        Returns:
            The result without the long lists, which lie on disk; that of another run which has
            stored the cell meanwhile, or ``running`` where another is at it.

        Raises:
            MachineError: the disk is full.
        """
        if not self.mark or self.store.has(self.mark):
            return self.train_and_store(cell, tell)
        with tempfile.TemporaryDirectory(prefix="gradscope-") as folder:
            here = replace(self, store=Store(Path(folder)), mark="")
            result = here.train_and_store(cell, tell)
            return Packed(result, here.store.pack(cell.id))

    def train_and_store(self, cell: Cell, tell: Callable[[Progress], None]) -> CellResult:
        """As when called, on a machine that has the folder."""
        with claimed(self.store.root, cell.id) as mine:
            if not mine:
                return result_of(cell, "running")
            result = self._train(cell, tell)
        last = {name: values[-1:] for name, values in result.history.logged.items()}
        return replace(result, history=History((), result.history.epochs[-1:], last))

    def _train(self, cell: Cell, tell: Callable[[Progress], None]) -> CellResult:
        folder: Path | None = None
        trace: Trace | None = None
        try:
            splits = _splits_of(cell, self.cache_dir)
            origin = origin_of(cell.config, splits.fingerprint if splits else "", loaded=True)
            stored = self.store.read(cell)
            if stored.origin == origin and self._is_final(stored):
                return stored
            if cell.config.train.function:
                folder = self._folder(cell, origin)
            result, trace = train_cell(
                cell, splits, tell, objectives=self.objectives, folder=folder, stop=self.stop
            )
        except (Exception, SystemExit) as error:
            self._blame_the_disk(error)
            if out_of_memory(error):  # of a GPU that it may have shared: the engine tries again
                raise
            kind = "" if isinstance(error, GradscopeError) else f"{type(error).__name__}: "
            told = " ".join(f"{kind}{error}".split())
            result = result_of(cell, "failed", error=told, traceback=traceback.format_exc())
            folder = None
        try:
            self.store.save(result, trace, folder)
        except OSError as error:
            self._blame_the_disk(error)
            raise
        return result

    def _is_final(self, stored: CellResult) -> bool:
        return stored.status in ENDED and (self.stop is not None or stored.status != "stopped")

    def _folder(self, cell: Cell, origin: Origin) -> Path:
        mark = hashlib.sha256(json.dumps(asdict(origin), sort_keys=True).encode()).hexdigest()
        return self.store.work_folder(cell.id, mark[:8])

    def _blame_the_disk(self, error: BaseException) -> None:
        full = no_space(error)
        if full is not None:
            raise full from error
        if shutil.disk_usage(self.store.root).free < _LEAST_FREE_BYTES:
            raise MachineError(
                f"{self.store.root}: no room to write (the disk is full); make room, then run the "
                "same again"
            ) from error


def _splits_of(cell: Cell, cache_dir: Path | None) -> Splits | None:
    data = cell.config.data
    return None if data is None else _splits(data.model_dump_json(), cache_dir)


@lru_cache(maxsize=2)
def _splits(config: str, cache_dir: Path | None) -> Splits:
    """Images stay mapped from cell to cell: opening them checks every byte."""
    return load(DataConfig.model_validate_json(config), cache_dir=cache_dir)


def result_of(cell: Cell, status: Status, **fields: Any) -> CellResult:
    """A result without any measurement.

    Args:
        cell: which.
        status: what became of it.
        **fields: of the result: why, on one line, and the traceback.
    """
    config = cell.config.model_dump(mode="json")
    return CellResult(cell.id, dict(cell.factors), cell.config.seed, status, config, **fields)


class Happening(Protocol):
    """Whoever is told what happens to cells."""

    def happened(self, event: Event) -> None:
        """A cell ``started``, made ``progress`` (a `Progress`) or ``finished`` (a `CellResult`).

        One that another run has claimed finishes as ``running``; it starts again later.
        """
        ...


@dataclass(frozen=True)
class Supervisor:
    """Stores in a lost cell's stead, and passes everything on."""

    store: Store
    plan: Plan
    observe: Happening
    elsewhere: set[str] = field(default_factory=set)
    """Cells that another run has claimed."""

    def happened(self, event: Event) -> None:
        """Take one event of an engine.

        Raises:
            MachineError: nothing can be stored any more.
        """
        if event.kind == "halted":
            raise MachineError(str(event.value))
        if event.kind == "lost":
            event = Event(event.task, "finished", self._result_of_lost(event))
        if isinstance(event.value, Packed):
            with self._written():
                self.store.unpack(event.task, event.value.files)
            event = Event(event.task, "finished", event.value.result)
        if event.kind == "finished" and event.value.status == "running":
            self.elsewhere.add(event.task)
        self.observe.happened(event)

    def _result_of_lost(self, event: Event) -> CellResult:
        cell = next(cell for cell in self.plan.todo if cell.id == event.task)
        stored = self.store.read(cell)
        before = self.plan.stale.get(cell.id)
        is_new = before is None or stored.origin != before.origin
        if stored.status in ENDED and is_new:  # its process died after it had stored it
            return stored
        told = {"error": str(event.value), "traceback": event.traceback}
        result = result_of(cell, "failed", **told)
        with self._written():
            self.store.save(result, None)
        return result

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = no_space(error)
            if full is not None:
                raise full from error
            raise ConfigError(
                f"{self.store.root}: cannot be written ({error.strerror or error}); mend that, "
                "then run the same again"
            ) from error
