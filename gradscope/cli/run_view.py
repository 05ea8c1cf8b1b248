"""What the command line shows of a run: bars or lines while it goes on, tables before and after."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from gradscope.ablation.document import shown
from gradscope.ablation.estimate import makespan_s
from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.run import Observer, Plan, estimate, make_plan, prepare_data, usual_jobs
from gradscope.ablation.store import Store
from gradscope.ablation.trainer import Progress
from gradscope.diagnosis.diagnose import diagnose
from gradscope.engines.task import Event
from gradscope.errors import GradscopeError
from gradscope.study.results import CellResult, Study

_DASH = "\N{EM DASH}"
_SILENCE_S = 10.0
"""How often a log tells that images are still being read."""
_STYLES = {"done": "green", "diverged": "yellow", "failed": "red", "healthy": "green"}


@contextmanager
def observer() -> Iterator[Observer]:
    """Bars on a terminal, else one line per finished cell; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Log(sys.stderr)
        return
    with BarDisplay(console) as display:
        yield display


def show_plan(grid: Grid, runs_dir: Path, jobs: int | None = None) -> None:
    """Print the cells of a grid and how long they take, without training them.

    Raises:
        GradscopeError: images cannot be read, or a model cannot be trained.
    """
    jobs = jobs or usual_jobs(grid)
    with observer() as observe:
        prepare_data(grid.cells(), observe)
        plan = make_plan(grid, Store(runs_dir))
        seconds = estimate(plan, jobs, observe)
    console = _output()
    console.print(plan_table(grid, plan, seconds))
    console.print(estimate_line(plan.todo, seconds, jobs), markup=False, highlight=False)


def show_study(study: Study) -> None:
    """Print what came of each cell, and on standard error which failed."""
    _output().print(summary(study))
    for line in failures(study):
        sys.stderr.write(f"{line}\n")


def _output() -> Console:
    """Standard output; in a file no line is folded for want of a terminal's width."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


class Remaining:
    """How long the rest takes, from what was done since the start."""

    def __init__(self, plan: Plan, now: Callable[[], float] = time.monotonic) -> None:
        usual = statistics.mean(plan.seconds.values()) if plan.seconds else 1.0
        self._weights = {cell.id: plan.seconds.get(cell.id, usual) for cell in plan.todo}
        self._shares = dict.fromkeys(self._weights, 0.0)
        self._now, self._started = now, now()

    def update(self, event: Event) -> None:
        """Note how far a cell is."""
        if event.kind == "progress":
            self._shares[event.task] = event.value.step / event.value.total_steps
        elif event.kind == "finished":
            self._shares[event.task] = 1.0

    def seconds(self) -> float:
        """Until all is done; NaN while nothing is known."""
        total = sum(self._weights.values())
        done = sum(weight * self._shares[cell] for cell, weight in self._weights.items())
        if not done:
            return 0.0 if not total else math.nan
        return (self._now() - self._started) * (total - done) / done


class Log:
    """One line for each finished cell."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_at = time.monotonic()
        self._done = self._total = 0

    def preparing(self, what: str, done: int, total: int) -> None:
        """Tell it when it lasts."""
        if time.monotonic() - self._told_at >= _SILENCE_S:
            self._say(f"{what}: {done} of {total}")

    def planned(self, plan: Plan) -> None:
        """Tell what is to be done."""
        self._remaining = Remaining(plan)
        self._done, self._total = len(plan.stored), len(plan.stored) + len(plan.todo)
        self._say(intention(plan))

    def happened(self, event: Event) -> None:
        """Tell what came of a cell."""
        self._remaining.update(event)
        if event.kind == "finished":
            self._done += 1
            left = self._remaining.seconds()
            told = f"; {lasting(left)} left" if self._done < self._total else ""
            self._say(f"{self._done}/{self._total} {event.task}: {outcome(event.value)}{told}")

    def _say(self, text: str) -> None:
        self._told_at = time.monotonic()
        self._stream.write(" ".join(text.split()) + "\n")
        self._stream.flush()


class BarDisplay:
    """A bar for all cells and one for each that is running."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn(
                "{task.description}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis", min_width=20),
            ),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, min_width=30)),
            console=console,
            transient=True,
            expand=True,
        )
        self._rows: dict[str, TaskID] = {}
        self._total: TaskID | None = None
        self._failed = self._done = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show a bar for what is being read."""
        if what not in self._rows:
            self._rows[what] = self._bars.add_task(escape(what), total=total, note="")
        self._bars.update(self._rows[what], completed=done, total=total)

    def planned(self, plan: Plan) -> None:
        """Show the bar for all cells."""
        for row in self._rows.values():
            self._bars.remove_task(row)
        self._rows.clear()
        self._remaining = Remaining(plan)
        self._done = len(plan.stored)
        self._console.print(intention(plan), markup=False, highlight=False)
        total = self._done + len(plan.todo)
        self._total = self._bars.add_task("cells", total=total, completed=self._done, note="")

    def happened(self, event: Event) -> None:
        """Move the bars."""
        self._remaining.update(event)
        if event.kind == "started":
            self._rows[event.task] = self._bars.add_task(escape(event.task), total=None, note="")
        elif event.kind == "progress":
            told: Progress = event.value
            self._bars.update(
                self._rows[event.task],
                completed=told.step,
                total=told.total_steps,
                note=f"loss {told.loss:.3g}, {told.images_per_s:.0f} images/s",
            )
        elif event.kind == "finished":
            self._bars.remove_task(self._rows.pop(event.task))
            self._done += 1
            self._failed += event.value.status == "failed"
        if self._total is not None:
            failed = f", {self._failed} failed" if self._failed else ""
            left = lasting(self._remaining.seconds())
            note = f"{len(self._rows)} running{failed}, {left} left"
            self._bars.update(self._total, completed=self._done, note=note)


def intention(plan: Plan) -> str:
    """What a run is going to do, on one line."""
    total = len(plan.todo) + len(plan.stored)
    kept = f", {len(plan.stored)} are stored" if plan.stored else ""
    again = f", {len(plan.retried)} that failed before are tried again" if plan.retried else ""
    return f"{len(plan.todo)} of {total} cells to train{kept}{again}"


def outcome(result: CellResult) -> str:
    """What came of a cell, on one line."""
    parts = [f"{result.status} ({result.error})" if result.error else str(result.status)]
    if result.history.epochs:
        last = result.history.epochs[-1]
        parts += [f"loss {last.train_loss:.3g}", f"accuracy {percent(last.val_accuracy)}"]
    return ", ".join([*parts, lasting(result.duration_s)])


def summary(study: Study) -> Table:
    """Cell, status, final loss, accuracy and verdict on the gradients."""
    table = Table(title=escape(study.name), title_justify="left")
    table.add_column("cell", overflow="fold")
    for heading in ("status", "loss", "accuracy", "gradients"):
        table.add_column(heading, justify="right" if heading in ("loss", "accuracy") else "left")
    for result in study.results:
        last = result.history.epochs[-1] if result.history.epochs else None
        table.add_row(
            escape(result.id),
            _styled(result.status),
            f"{last.train_loss:.3g}" if last else _DASH,
            percent(last.val_accuracy) if last else _DASH,
            _styled(verdict(result)),
        )
    return table


def verdict(result: CellResult) -> str:
    """On the gradients of a cell; a dash where there are none."""
    if result.trace_path is None:
        return _DASH
    try:
        return diagnose(result.trace()).verdict.value
    except GradscopeError:
        return "unreadable"


def failures(study: Study) -> list[str]:
    """One line for each cell that failed: which, why, and where more is told."""
    lines = []
    for result in study.results:
        if result.status == "failed":
            path = Path(study.path or "", result.id, "traceback.txt")
            more = f"; traceback in {path}" if result.traceback else ""
            lines.append(f"{result.id} failed: {result.error}{more}")
    return lines


def plan_table(grid: Grid, plan: Plan, seconds: Mapping[str, float]) -> Table:
    """Every cell with its factors, what is stored of it, and how long it takes.

    Args:
        grid: the study.
        plan: what there is to do.
        seconds: cell id -> seconds.
    """
    known = {result.id: result.status for result in (*plan.stored, *plan.retried)}
    table = Table(title=escape(grid.name), title_justify="left")
    for heading in ("cell", *grid.factors, "seed", "status", "time"):
        table.add_column(escape(heading), overflow="fold")
    for cell in grid.cells():
        values = [shown(cell.factors.get(name)) for name in grid.factors]
        status = known.get(cell.id, "pending")
        time_s = lasting(seconds[cell.id]) if cell.id in seconds else _DASH
        row = [*map(escape, (cell.id, *values)), str(cell.config.seed), _styled(status), time_s]
        table.add_row(*row)
    return table


def estimate_line(todo: Sequence[Cell], seconds: Mapping[str, float], jobs: int) -> str:
    """How long the rest of a grid takes, on one line."""
    if not todo:
        return "nothing to train: every cell is stored"
    total = makespan_s([seconds[cell.id] for cell in todo], jobs)
    processes = "1 process" if jobs == 1 else f"{jobs} processes"
    return f"{len(todo)} of the cells to train: about {lasting(total)} with {processes}"


def lasting(seconds: float) -> str:
    """A time for people: ``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """A share as per cent; a dash where there is none."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else _DASH


def _styled(word: str) -> str:
    style = _STYLES.get(word)
    return f"[{style}]{word}[/]" if style else escape(word)
