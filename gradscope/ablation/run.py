"""run_grid(): trains the cells of a grid that are not stored yet, each in its own place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gradscope.ablation.choice import choose, keep, kept
from gradscope.ablation.claims import is_claimed, sweep
from gradscope.ablation.estimate import timed
from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.layout import needs_of, usual_jobs
from gradscope.ablation.plan import Plan, make_plan
from gradscope.ablation.store import Store
from gradscope.ablation.work import CellWork, Supervisor
from gradscope.data import load
from gradscope.engines.installed import check_engine
from gradscope.engines.local import Local
from gradscope.engines.placement import described, devices
from gradscope.engines.ray import Ray
from gradscope.engines.slurm import Slurm
from gradscope.engines.task import Engine, Event
from gradscope.errors import ConfigError
from gradscope.study.results import Study

_LOOK_EVERY_S = 1.0
"""How often it is looked whether another run on the same folder has finished a cell."""


class Observer(Protocol):
    """Told what a run does, in the thread of its caller."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images are being read; not called when they are in the cache."""
        ...

    def planned(self, plan: Plan) -> None:
        """Images are ready, training begins."""
        ...

    def happened(self, event: Event) -> None:
        """A cell ``started``, made ``progress`` (a `Progress`) or ``finished`` (a `CellResult`).

        One that another run has claimed finishes as ``running``; it starts again later.
        """
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
    trust: bool = False,
) -> Study:
    """Train every cell that is not stored, or was trained with other code or data, and store it.

    Interrupted or killed, it loses the cells that were running; called again, it goes on. Cells
    that failed are tried again. A cell that raises or diverges is stored so, and stops no other.
    Several runs, also on several machines, may share the folder: each takes cells that no other has
    claimed, and the cell of one that died is taken over.

    Args:
        grid: the study.
        runs_dir: the folder of this study; made when missing.
        engine: ``local``, ``ray``, ``slurm``, or an engine of one's own.
        jobs: cells at a time; None: on one machine one per GPU, or per core where there is none;
            on a cluster as many as there is room for.
        observe: told what happens.
        cache_dir: of the images; None: the default.
        trust: keep stored cells whose code or data have changed since.

    Returns:
        The study as it lies on disk, in the grid's order.

    Raises:
        GradscopeError: the data are bad, the folder is of another study, or the engine
            is unknown: nothing has been trained then. Or the disk is full: what is finished stays.

    Example:
        >>> study = run_grid(Grid.load("ablations/hw5.yaml"), "runs/hw5")  # doctest: +SKIP
    """
    runner = make_engine(engine, grid, jobs, Path(runs_dir).absolute())
    observe = observe or Silent()
    data = prepare_data(grid.cells(), observe, cache_dir)
    store = Store(Path(runs_dir).absolute())
    with store.locked():
        store.refuse_others(grid.name)
        grid, notes = settle(
            grid, store.root, engine, jobs=jobs, observe=observe, cache_dir=cache_dir
        )
        runner = make_engine(engine, grid, jobs, store.root)
        store.prepare(grid)
        plan = make_plan(grid, store, data=data, trust=trust)
        plan = replace(plan, notes=(*notes, *plan.notes))
        if isinstance(runner, Local) and (
            told := described(runner.needs, runner.places, devices())
        ):
            plan = replace(plan, notes=(*plan.notes, told))
    observe.planned(plan)
    todo = plan.todo
    # Jobs of SLURM outlive this run, and with it the mark; their folder is shared all the same.
    with store.marked() if isinstance(runner, Ray) else nullcontext("") as mark:
        work = CellWork(store, cache_dir, grid.objectives, grid.stop, mark)
        while todo:
            supervisor = Supervisor(store, plan, observe)
            runner.run(todo, work, supervisor.happened)
            todo = _left_by_others(store, [c for c in todo if c.id in supervisor.elsewhere])
    sweep(store.root)
    return Store.load(runs_dir)


def settle(
    grid: Grid,
    folder: Path,
    engine: Engine | str,
    *,
    jobs: int | None,
    observe: Observer,
    cache_dir: Path | None = None,
    dry: bool = False,
) -> tuple[Grid, tuple[str, ...]]:
    """Put what is measured, or was when the study was begun, in the place of each ``auto``.

    Args:
        grid: its images are prepared.
        folder: of the study, where the choice is kept.
        engine: where cells will run.
        jobs: cells at a time; None: not said.
        observe: told of the timing as of the reading of images.
        cache_dir: of the images.
        dry: write nothing.

    Returns:
        The grid without ``auto``; what was chosen and why, in lines.
    """
    choice = kept(folder)
    if not choice.settles(grid):
        name = engine if isinstance(engine, str) else type(engine).__name__
        later = choose(
            choice.applied(grid),
            engine.jobs if isinstance(engine, Local) else jobs,
            lambda done, total: observe.preparing("timing the ways to train", done, total),
            untimed="" if name in ("local", "Local") else name,
            cache_dir=cache_dir,
        )
        choice = choice.filled(later)
        if not dry:
            keep(choice, folder)
    return choice.applied(grid), choice.told(grid)


def _left_by_others(store: Store, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Wait until one of the cells that other runs train is free; those that are free then."""
    while cells:
        free = tuple(cell for cell in cells if not is_claimed(store.root, cell.id))
        if free:
            return tuple(cells)  # what others have finished by then is read, not trained
        time.sleep(_LOOK_EVERY_S)
    return ()


def make_engine(engine: Engine | str, grid: Grid, jobs: int | None, folder: Path) -> Engine:
    """The engine of that name.

    Args:
        engine: its name, or an engine of one's own.
        grid: says what its cells need.
        jobs: cells at a time; None: as many as there is room for.
        folder: of the study.

    Raises:
        ConfigError: there is none, what it needs is not installed, or no cell fits on it.
    """
    if not isinstance(engine, str):
        return engine
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs}; give at least one process")
    needs = needs_of(grid)
    check_engine(engine)
    if engine == "ray":
        return Ray(jobs, needs)
    if engine == "slurm":
        return Slurm(folder / ".slurm", jobs, needs)
    local = Local(jobs or usual_jobs(grid), needs)
    return replace(local, jobs=len(local.places))


def prepare_data(
    cells: Sequence[Cell], observe: Observer, cache_dir: Path | None = None
) -> dict[str, str]:
    """Read all images into the cache, once for each distinct setting.

    Returns:
        Settings, as JSON -> digest of the images.

    Raises:
        DataError: images cannot be read.
    """
    named = {c.config.data.model_dump_json(): c.config.data for c in cells if c.config.data}
    return {
        text: load(config, observe.preparing, cache_dir).fingerprint
        for text, config in named.items()
    }


def estimate(
    plan: Plan, threads: int, observe: Observer
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of each cell: as cells like it took, else as a few steps of it take here and now.

    Args:
        plan: what is stored and to be done; the images are prepared.
        threads: of each process.
        observe: told of the timing as of the reading of images.

    Returns:
        Cell id -> seconds, for all that are to be done and can be timed and all that are like one
        that was; cell id -> why it cannot be trained.
    """
    unknown = [cell for cell in plan.todo if cell.id not in plan.seconds]
    found, failures = timed(
        unknown,
        threads,
        lambda done, total: observe.preparing("timing a few steps", done, total),
    )
    return {**plan.seconds, **found}, failures
