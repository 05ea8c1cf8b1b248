"""What the command line shows of a data set: a progress bar, a table, JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gradscope.data.dataset import Splits
from gradscope.data.source import SPLITS, ReportProgress


@contextmanager
def progress_bar() -> Iterator[ReportProgress]:
    """A bar on stderr for each thing that takes time, and nothing when nothing does.

    When what it goes with fails, the bars vanish: the error stands alone.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(escape(what), total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield show
    except BaseException:
        bars.live.transient = True
        bars.live.stop()  # bars.stop() would leave an empty line where stderr is a file
        raise
    if tasks:
        bars.stop()


def table(splits: Splits) -> RenderableType:
    """Images per class and split, and what was left out."""
    found = Table(title=escape(splits.source), title_justify="left")
    found.add_column("class")
    for split in SPLITS:
        found.add_column(split, justify="right")
    for name in splits.classes:
        found.add_row(escape(name), *(f"{splits.counts[split][name]:,}" for split in SPLITS))
    found.add_section()
    totals = [sum(splits.counts[split].values()) for split in SPLITS]
    found.add_row("all", *(f"{total:,}" for total in totals))
    reasons = {why for split in SPLITS for why in splits.left_out.get(split, {})}
    for why in sorted(reasons):
        counts = (splits.left_out.get(split, {}).get(why, 0) for split in SPLITS)
        found.add_row(f"left out: {escape(why)}", *(f"{n:,}" for n in counts), style="dim")
    return Group(found, *(escape(note) for note in splits.notes))


def to_dict(splits: Splits) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    return {
        "source": splits.source,
        "classes": list(splits.classes),
        "shape": list(splits.train.images.shape[1:]),
        "counts": splits.counts,
        "left_out": splits.left_out,
        "notes": list(splits.notes),
        "fingerprint": splits.fingerprint,
    }
