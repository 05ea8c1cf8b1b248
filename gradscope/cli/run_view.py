"""What the command line shows of a run while it goes on: bars, or lines."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from gradscope.ablation.plan import Plan
from gradscope.ablation.progress import Progress
from gradscope.ablation.run import Observer
from gradscope.engines.task import Event
from gradscope.study.results import CellResult

DASH = "\N{EM DASH}"
_SILENCE_S = 10.0
"""How often a log tells that images are still being read."""


class Tally:
    """Passes on what a run tells, and counts how often each cell was begun."""

    def __init__(self, display: Observer) -> None:
        self.begun: Counter[str] = Counter()
        self._display = display

    def preparing(self, what: str, done: int, total: int) -> None:
        """Pass on."""
        self._display.preparing(what, done, total)

    def planned(self, plan: Plan) -> None:
        """Cells that are stored were begun once, before."""
        self.begun.update(result.id for result in plan.stored)
        self._display.planned(plan)

    def happened(self, event: Event) -> None:
        """Count, and pass on."""
        self.begun[event.task] += event.kind == "started"
        self.begun[event.task] -= _is_elsewhere(event)
        self._display.happened(event)


@contextmanager
def observer() -> Iterator[Tally]:
    """Bars on a terminal, else one line per finished cell; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Tally(Log(sys.stderr))
        return
    with BarDisplay(console) as display:
        yield Tally(display)


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
            told: Progress = event.value
            self._shares[event.task] = told.step / told.total_steps if told.total_steps else 0.0
        elif event.kind == "finished" and not _is_elsewhere(event):
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
        for line in (intention(plan), *plan.notes):
            self._say(line)

    def happened(self, event: Event) -> None:
        """Tell what came of a cell."""
        self._remaining.update(event)
        if event.kind == "finished" and not _is_elsewhere(event):
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
        for line in (intention(plan), *plan.notes):
            self._console.print(line, markup=False, highlight=False)
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
                total=told.total_steps or None,
                note=progress_note(told),
            )
        elif event.kind == "finished":
            self._bars.remove_task(self._rows.pop(event.task))
            self._done += not _is_elsewhere(event)
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


def _is_elsewhere(event: Event) -> bool:
    """Whether another run on the same folder has the cell, which is looked at again later."""
    return event.kind == "finished" and getattr(event.value, "status", "") == "running"


def progress_note(told: Progress) -> str:
    """What is known of a cell that is being trained, in a few words."""
    parts = [f"loss {told.loss:.3g}"] if not math.isnan(told.loss) else []
    parts += [f"{told.images_per_s:.0f} images/s"] if told.images_per_s else []
    return ", ".join(parts or [f"step {told.step}"])


def outcome(result: CellResult) -> str:
    """What came of a cell, on one line."""
    parts = [f"{result.status} ({result.error})" if result.error else str(result.status)]
    if result.history.epochs:
        last = result.history.epochs[-1]
        parts += [f"loss {last.train_loss:.3g}", f"accuracy {percent(last.val_accuracy)}"]
    else:
        parts += [f"{name} {values[-1][1]:.4g}" for name, values in result.history.logged.items()]
    return ", ".join([*parts, lasting(result.duration_s), *result.notes])


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
    return f"{100 * share:.1f} %" if math.isfinite(share) else DASH
