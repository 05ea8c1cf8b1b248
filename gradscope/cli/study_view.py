"""What the command line shows of a study: its cells before and after they were trained."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradscope.ablation.document import shown
from gradscope.ablation.estimate import makespan_s
from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.layout import usual
from gradscope.ablation.plan import Plan, make_plan
from gradscope.ablation.run import estimate, prepare_data, settle
from gradscope.ablation.store import Store
from gradscope.cli.run_view import DASH, lasting, observer, percent
from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import Diagnosis
from gradscope.errors import GradscopeError, one_line
from gradscope.study.doomed import doomed
from gradscope.study.results import ENDED, CellResult, Study

_STYLES = {
    "done": "green",
    "diverged": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "healthy": "green",
}


def show_plan(
    grid: Grid,
    runs_dir: Path,
    jobs: int | None = None,
    *,
    engine: str = "local",
    trust: bool = False,
) -> bool:
    """Print the cells of a grid and how long they take, without training them.

    Returns:
        Whether a cell cannot be trained.

    Raises:
        GradscopeError: images cannot be read.
    """
    with observer() as observe:
        data = prepare_data(grid.cells(), observe)
        grid, notes = settle(grid, runs_dir, engine, jobs=jobs, observe=observe, dry=True)
        layout = usual(grid, jobs)
        plan = make_plan(grid, Store(runs_dir), data=data, trust=trust)
        seconds, failing = estimate(plan, layout.threads, observe)
    console = output()
    console.print(plan_table(grid, plan, seconds, failing))
    told = estimate_line(plan.todo, seconds, layout.jobs, failing)
    for line in (*notes, *plan.notes, told):
        console.print(line, markup=False, highlight=False)
    return bool(failing)


def show_study(study: Study) -> bool:
    """Print what came of each cell, and on standard error which failed; whether one did."""
    output().print(summary(study))
    return show_failures(study)


def show_failures(study: Study) -> bool:
    """Print one line on standard error for each cell that failed or is damaged; whether one is."""
    lines = failures(study)
    for line in lines:
        sys.stderr.write(f"{line}\n")
    return bool(lines)


def output() -> Console:
    """Standard output; in a file no line is folded for want of a terminal's width."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def count(study: Study, begun: Mapping[str, int]) -> tuple[str, ...]:
    """How many cells there are results of, and what stopping some of them saved; a line each.

    Args:
        study: as it lies on disk.
        begun: cell id -> how often it was begun, in this run or before.
    """
    ended = sum(result.status in ENDED for result in study.results)
    failed = sum(result.status == "failed" for result in study.results)
    twice = sum(begun.get(result.id, 0) > 1 for result in study.results)
    more = f"; {failed} failed" if failed else ""
    found = doomed(study)
    saved = (f"{found}.",) if found is not None else ()
    return (*saved, f"{ended} of {len(study.results)} cells, {twice or 'none'} twice{more}")


def summary(study: Study) -> Table:
    """Cell, status, final numbers and verdict on the gradients."""
    table = Table(title=escape(study.name), title_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("status")
    named = {name: name for name in study.objectives} or {"loss": "", "accuracy": ""}
    for heading in named:
        table.add_column(escape(heading), justify="right")
    table.add_column("gradients")
    for result in study.results:
        told = _numbers(result, study.objectives)
        table.add_row(escape(result.id), _styled(result.status), *told, _styled(verdict(result)))
    return table


def _numbers(result: CellResult, objectives: Mapping[str, str]) -> list[str]:
    if objectives:
        values = [result.history.last(name) for name in objectives]
        return [DASH if math.isnan(value) else f"{value:.4g}" for value in values]
    if not result.history.epochs:
        loss = result.history.last("loss")
        return [DASH if math.isnan(loss) else f"{loss:.3g}", DASH]
    last = result.history.epochs[-1]
    return [f"{last.train_loss:.3g}", percent(last.val_accuracy)]


def verdict(result: CellResult) -> str:
    """On the gradients of a cell; a dash where there are none."""
    return Judged.of(result).verdict or DASH


@dataclass(frozen=True)
class Judged:
    """A cell, and what the diagnosis of its trace says."""

    result: CellResult
    diagnosis: Diagnosis | None
    """None where there is no trace, or none that can be read."""
    error: str = ""
    """Why it cannot be read."""

    @classmethod
    def of(cls, result: CellResult) -> Judged:
        """Judge one cell."""
        if result.trace_path is None:
            return cls(result, None)
        try:
            return cls(result, diagnose(result.trace()))
        except GradscopeError as error:
            return cls(result, None, one_line(error))

    @property
    def verdict(self) -> str:
        """Of the diagnosis; ``unreadable``, or empty, where there is none."""
        if self.diagnosis is not None:
            return self.diagnosis.verdict.value
        return "unreadable" if self.error else ""

    @property
    def is_unhealthy(self) -> bool:
        """Whether it was run and is not known to be well."""
        if self.result.status in ("pending", "running"):
            return False
        return self.diagnosis is None or not self.diagnosis.is_healthy

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        told = self.diagnosis.to_dict() if self.diagnosis is not None else None
        error = self.error or self.result.error
        return {
            "cell": self.result.id,
            "status": self.result.status,
            "error": error,
            "diagnosis": told,
        }


def judge(study: Study) -> list[Judged]:
    """Every cell of a study with its diagnosis."""
    return [Judged.of(result) for result in study.results]


def judgements(study: Study, judged: Sequence[Judged]) -> Table:
    """Cell, status, verdict, and what is the matter."""
    table = Table(title=escape(study.name), title_justify="left")
    table.add_column("cell", overflow="fold")
    for heading in ("status", "gradients", "because"):
        table.add_column(heading, overflow="fold")
    for each in judged:
        grave = [f for f in each.diagnosis.findings if f.severity == "error"] if (
            each.diagnosis is not None) else []  # fmt: skip
        because = grave[0].message if grave else each.error
        table.add_row(
            escape(each.result.id),
            _styled(each.result.status),
            _styled(each.verdict or DASH),
            escape(because),
        )
    return table


def failures(study: Study) -> list[str]:
    """One line for each cell that failed: which, why, and where more is told."""
    lines = []
    for result in study.results:
        if result.status == "failed":
            path = Path(study.path or "", result.id, "traceback.txt")
            more = f"; traceback in {path}" if result.traceback else ""
            lines.append(f"{result.id} failed: {result.error}{more}")
    return lines


def plan_table(
    grid: Grid, plan: Plan, seconds: Mapping[str, float], failing: Mapping[str, str]
) -> Table:
    """Every cell with its factors, what is stored of it, and how long it takes.

    Args:
        grid: the study.
        plan: what there is to do.
        seconds: cell id -> seconds.
        failing: cell id -> why it cannot be trained.
    """
    known = {result.id: result.status for result in (*plan.stored, *plan.retried)}
    table = Table(title=escape(grid.name), title_justify="left")
    for heading in ("cell", *grid.factors, "seed", "status", "time"):
        table.add_column(escape(heading), overflow="fold")
    for cell in grid.cells():
        values = [shown(cell.factors.get(name)) for name in grid.factors]
        status = known.get(cell.id, "pending")
        time_s = lasting(seconds[cell.id]) if cell.id in seconds else DASH
        if cell.id in failing:
            time_s = escape(f"fails: {failing[cell.id]}")
        row = [*map(escape, (cell.id, *values)), str(cell.config.seed), _styled(status), time_s]
        table.add_row(*row)
    return table


def estimate_line(
    todo: Sequence[Cell], seconds: Mapping[str, float], jobs: int, failing: Mapping[str, str]
) -> str:
    """How long the rest of a grid takes, on one line."""
    if not todo:
        return "nothing to train: every cell is stored"
    timed = [seconds[cell.id] for cell in todo if cell.id in seconds]
    processes = "1 process" if jobs == 1 else f"{jobs} processes"
    line = f"{len(todo)} of the cells to train"
    if timed:
        line += f": about {lasting(makespan_s(timed, jobs))} with {processes}"
    unknown = len(todo) - len(timed) - len(failing)
    if unknown > 0:
        line += f"; {unknown} of unknown time, until one like them has been trained"
    return line + (f"; {len(failing)} fail" if failing else "")


def _styled(word: str) -> str:
    style = _STYLES.get(word)
    return f"[{style}]{word}[/]" if style else escape(word)
