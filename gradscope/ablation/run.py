"""run_grid(): trains the cells of a grid that are not stored yet, each in its own place."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from gradscope.ablation.estimate import from_results, longest_first, timed
from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.store import Store
from gradscope.ablation.trainer import Progress, train_cell
from gradscope.data import DataConfig, Splits, load
from gradscope.engines.local import Local
from gradscope.engines.ray import Ray, import_ray
from gradscope.engines.task import Engine, Event, cores
from gradscope.errors import ConfigError, GradscopeError, nearest
from gradscope.study.results import CellResult, History, Study

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Plan:
    """What a run is going to do."""

    todo: tuple[Cell, ...]
    """In the order in which they are begun."""
    stored: tuple[CellResult, ...]
    """Cells that were run before, and are not run again."""
    retried: tuple[CellResult, ...]
    """Cells that failed before, and are run again."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Cell id -> how long it takes, as far as cells that were run tell."""


class Observer(Protocol):
    """Told what a run does, in the thread of its caller."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images are being read; not called when they are in the cache."""
        ...

    def planned(self, plan: Plan) -> None:
        """Images are ready, training begins."""
        ...

    def happened(self, event: Event) -> None:
        """A cell ``started``, made ``progress`` (a `Progress`) or ``finished`` (a `CellResult`)."""
        ...


class Silent:
    """An observer that keeps still."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def planned(self, plan: Plan) -> None:
        """Nothing."""

    def happened(self, event: Event) -> None:
        """Nothing."""


def run_grid(
    grid: Grid,
    runs_dir: str | Path,
    *,
    engine: Engine | str = "local",
    jobs: int | None = None,
    observe: Observer | None = None,
    cache_dir: Path | None = None,
) -> Study:
    """Train every cell that is not stored as done or diverged, and store it.

    Interrupted or killed, it loses the cells that were running; called again, it goes on. Cells
    that failed are tried again. A cell that raises or diverges is stored so, and stops no other.

    Args:
        grid: the study.
        runs_dir: the folder of this study; made when missing.
        engine: ``local``, ``ray``, or an engine of one's own.
        jobs: processes at a time; None: one per core, no more than the grid has cells.
        observe: told what happens.
        cache_dir: of the images; None: the default.

    Returns:
        The study as it lies on disk, in the grid's order.

    Raises:
        GradscopeError: the data are bad, the folder is in use or of another study, or the engine
            is unknown. Nothing has been trained then.

    Example:
        >>> study = run_grid(Grid.load("ablations/hw5.yaml"), "runs/hw5")  # doctest: +SKIP
    """
    runner = make_engine(engine, usual_jobs(grid) if jobs is None else jobs)
    observe = observe or Silent()
    cells = grid.cells()
    prepare_data(cells, observe, cache_dir)
    store = Store(Path(runs_dir).absolute())
    with store.locked():
        store.prepare(grid)
        plan = make_plan(grid, store)
        observe.planned(plan)
        supervisor = _Supervisor(store, {cell.id: cell for cell in cells}, observe)
        if plan.todo:
            runner.run(plan.todo, CellWork(store, cache_dir), supervisor.happened)
    return Store.load(runs_dir)


def usual_jobs(grid: Grid) -> int:
    """One process per core; the same however many cells are left, since it sets the threads."""
    return max(1, min(cores(), len(grid.cells())))


def make_engine(engine: Engine | str, jobs: int) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: there is none, or what it needs is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if jobs < 1:
        raise ConfigError(f"jobs: {jobs}; give at least one process")
    if engine == "local":
        return Local(jobs)
    if engine == "ray":
        import_ray()
        return Ray(jobs)
    raise ConfigError(f"unknown engine '{engine}'; {nearest(engine, ENGINES)}")


def prepare_data(cells: Sequence[Cell], observe: Observer, cache_dir: Path | None = None) -> None:
    """Read all images into the cache, once for each distinct setting.

    Raises:
        DataError: images cannot be read.
    """
    for config in {cell.config.data.model_dump_json(): cell.config.data for cell in cells}.values():
        load(config, observe.preparing, cache_dir)


def make_plan(grid: Grid, store: Store) -> Plan:
    """What is stored, what is to be done, and in which order."""
    cells = grid.cells()
    results = [store.read(cell) for cell in cells]
    stored = tuple(r for r in results if r.status in ("done", "diverged"))
    finished = {result.id for result in stored}
    seconds = from_results(cells, stored)
    todo = longest_first([cell for cell in cells if cell.id not in finished], seconds)
    retried = tuple(result for result in results if result.status == "failed")
    return Plan(tuple(todo), stored, retried, seconds)


@dataclass(frozen=True)
class CellWork:
    """Trains a cell and stores what came of it, in whatever process an engine runs it."""

    store: Store
    cache_dir: Path | None = None

    def __call__(self, cell: Cell, tell: Callable[[Progress], None]) -> CellResult:
        """Train and store; what raises is stored as ``failed``.

        Returns:
            The result without the long lists, which lie on disk.
        """
        try:
            splits = _splits(cell.config.data.model_dump_json(), self.cache_dir)
            result, trace = train_cell(cell, splits, tell)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's model raises
            kind = "" if isinstance(error, GradscopeError) else f"{type(error).__name__}: "
            told = " ".join(f"{kind}{error}".split())
            result, trace = failed(cell, told, traceback.format_exc()), None
        self.store.save(result, trace)
        return replace(result, history=History(epochs=result.history.epochs[-1:]))


@lru_cache(maxsize=2)
def _splits(config: str, cache_dir: Path | None) -> Splits:
    """Images stay mapped from cell to cell: opening them checks every byte."""
    return load(DataConfig.model_validate_json(config), cache_dir=cache_dir)


def failed(cell: Cell, error: str, trace: str = "") -> CellResult:
    """The result of a cell that raised, or whose process died.

    Args:
        cell: which.
        error: why, on one line.
        trace: the traceback, where there is one.
    """
    return CellResult(
        id=cell.id,
        factors=dict(cell.factors),
        seed=cell.config.seed,
        status="failed",
        config=cell.config.model_dump(mode="json"),
        error=error,
        traceback=trace,
    )


@dataclass(frozen=True)
class _Supervisor:
    """Stores in a lost cell's stead, and passes everything on."""

    store: Store
    cells: Mapping[str, Cell]
    observe: Observer

    def happened(self, event: Event) -> None:
        if event.kind == "lost":
            event = Event(event.task, "finished", self._result_of_lost(event))
        self.observe.happened(event)

    def _result_of_lost(self, event: Event) -> CellResult:
        cell = self.cells[event.task]
        stored = self.store.read(cell)
        if stored.status in ("done", "diverged"):  # its process died after it had stored it
            return stored
        result = failed(cell, str(event.value), event.traceback)
        try:
            self.store.save(result, None)
        except OSError as error:
            raise ConfigError(
                f"{self.store.root}: cannot be written ({error.strerror or error}); make room "
                "there, then run the same again"
            ) from error
        return result


def estimate(plan: Plan, jobs: int, observe: Observer) -> dict[str, float]:
    """Seconds of each cell: as cells like it took, else as a few steps of it take here and now.

    Args:
        plan: what is stored and to be done; the images are prepared.
        jobs: processes at a time, which share the cores.
        observe: told of the timing as of the reading of images.

    Returns:
        Cell id -> seconds, for all that are to be done and all that are like one that was.

    Raises:
        GradscopeError: a model cannot be built or trained.
    """
    unknown = [cell for cell in plan.todo if cell.id not in plan.seconds]
    found = timed(
        unknown,
        lambda cell: load(cell.config.data),
        Local(jobs).threads,
        lambda done, total: observe.preparing("timing a few steps", done, total),
    )
    return {**plan.seconds, **found}
