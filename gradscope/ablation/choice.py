"""Choice: what becomes of each ``auto`` of a grid, measured once for a study and kept beside it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gradscope.ablation.grid import Grid
from gradscope.ablation.layout import Layout, layouts, needs_of
from gradscope.ablation.settings import AUTO
from gradscope.ablation.ways import Precision, Way, timed_ways
from gradscope.engines.placement import devices

FILE = "chosen.json"
"""In the folder of a study; who takes it up again finds there what the others trained with."""

_WORTH = 1.03
"""A way must be faster by so much than one before it in the order of preference: fp32 before bf16,
more processes before fewer, since what is measured varies by as much."""


@dataclass(frozen=True)
class Choice:
    """What stands for ``auto``; None: the grid leaves nothing of that open."""

    precision: Precision | None = None
    cpus: int | None = None
    gpus: float | None = None
    """Share of a GPU that goes with ``cpus`` where there are GPUs."""
    why: str = ""
    """On one line."""
    images_per_s: dict[str, float] = field(default_factory=dict)
    """Each way that was timed -> of all its processes together."""

    def settles(self, grid: Grid) -> bool:
        """Whether nothing of the grid is left open."""
        open_precision = grid.has_open_precision and self.precision is None
        return not (open_precision or (grid.resources.cpus == AUTO and self.cpus is None))

    def applied(self, grid: Grid) -> Grid:
        """The grid as if it had said outright what was chosen."""
        needs: dict[str, float | None] = {}
        if grid.resources.cpus == AUTO and self.cpus is not None:
            needs["cpus"] = self.cpus
            if self.gpus is not None and grid.resources.gpus is None and devices():
                needs["gpus"] = self.gpus
        return grid.settled(self.precision or AUTO, grid.resources.model_copy(update=needs))

    def filled(self, later: Choice) -> Choice:
        """This one, with what it leaves open as another has it."""
        return Choice(
            self.precision or later.precision,
            self.cpus or later.cpus,
            self.gpus if self.cpus else later.gpus,
            later.why,
            {**self.images_per_s, **later.images_per_s},
        )

    def told(self, grid: Grid) -> tuple[str, ...]:
        """What was chosen and why, on one line."""
        parts = [f"precision: auto is {self.precision}"] if grid.has_open_precision else []
        if grid.resources.cpus == AUTO:
            share = "" if self.gpus is None else f" and {self.gpus:g} of a GPU"
            parts.append(f"resources.cpus: auto is {self.cpus}{share}")
        return (f"{', '.join(parts)}: {self.why}",) if parts else ()


def choose(
    grid: Grid,
    jobs: int | None,
    tell: Callable[[int, int], None],
    *,
    untimed: str = "",
    cache_dir: Path | None = None,
) -> Choice:
    """Time the ways to train a grid, and choose the fastest.

    Args:
        grid: leaves something open; its images are prepared.
        jobs: cells at a time, where that is said.
        tell: told how many turns of the timing are done, of how many.
        untimed: the engine, where nothing can be timed because its cells run elsewhere.
        cache_dir: of the images.
    """
    built_in = [cell for cell in grid.cells() if not cell.config.train.function]
    if untimed:
        needs = needs_of(grid)
        why = f"the usual; nothing is timed for the engine '{untimed}'"
        return _choice(grid, Way("fp32", Layout(1, needs.cpus or 1)), why, {})
    all_layouts = layouts(grid, jobs)
    usual = Way("fp32", all_layouts[0])
    if not built_in:
        why = f"the usual, {usual.layout}; a training function of one's own cannot be timed"
        return _choice(grid, usual, why, {})
    cell = built_in[0]
    asked = cell.config.train.precision
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if asked == AUTO else (asked,)
    ways = [Way(precision, layout) for precision in precisions for layout in all_layouts]
    rates = timed_ways(cell, ways, needs_of(grid), tell, cache_dir)
    if not rates:
        return _choice(grid, usual, f"the usual; {cell.id} could not be timed", {})
    best = next(way for way, rate in rates.items() if rate * _WORTH >= max(rates.values()))
    listed = ", ".join(f"{way} {rate:.0f}" for way, rate in rates.items())
    return _choice(grid, best, f"images/s of {cell.id} here: {listed}", rates)


def _choice(grid: Grid, way: Way, why: str, rates: dict[Way, float]) -> Choice:
    gpus = devices() if grid.resources.cpus == AUTO and grid.resources.gpus is None else ()
    return Choice(
        way.precision if grid.has_open_precision else None,
        way.layout.threads if grid.resources.cpus == AUTO else None,
        min(1.0, len(gpus) / way.layout.jobs) if gpus else None,
        why,
        {str(way): round(rate, 1) for way, rate in rates.items()},
    )


def kept(folder: Path) -> Choice:
    """The choice of a study; nothing is chosen where none was kept, or none can be read."""
    try:
        return Choice(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Choice()


def keep(choice: Choice, folder: Path) -> None:
    """Write it down for whoever takes the study up again."""
    temporary = folder / f".{FILE}.{uuid.uuid4().hex[:8]}"
    temporary.write_text(json.dumps(asdict(choice)) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
