"""What a study holds: the outcome of each cell, and all of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradscope import shown

if TYPE_CHECKING:
    from gradscope.trace.table import Trace

Status = Literal["done", "diverged", "stopped", "failed", "running", "pending"]
"""``diverged``: the loss became non-finite, the trace ends there; ``stopped``: its gradients were
beyond hope, and the grid says to end such cells; ``failed``: it raised."""

ENDED: tuple[Status, ...] = ("done", "diverged", "stopped")
"""What a cell with a result is; the others are run again."""


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
    logged: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Metric -> (step, value) in the order in which they were logged; non-finite ones are kept."""

    def last(self, metric: str) -> float:
        """The last value that was logged of a metric; NaN where there is none."""
        values = self.logged.get(metric)
        return values[-1][1] if values else math.nan


@dataclass(frozen=True)
class Origin:
    """What a cell was trained with beside its configuration."""

    files: dict[str, str] = field(default_factory=dict)
    """File of the user's own project, or that an argument names -> digest of its content."""
    trainer: int = 0
    """Version of the built-in loop and networks; 0 where neither was used."""
    data: str = ""
    """Digest of the images; empty where a function of one's own brought its own data."""

    def changed(self, now: Origin) -> tuple[str, ...]:
        """What is different now: names of files, ``gradscope's trainer``, ``the data``."""
        names = self.files.keys() | now.files.keys()
        found = sorted(n for n in names if self.files.get(n) != now.files.get(n))
        if self.trainer != now.trainer:
            found.append("gradscope's trainer")
        if self.data != now.data:
            found.append("the data")
        return tuple(found)


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
    notes: tuple[str, ...] = ()
    """What is worth a line though it went well: the function returned something."""
    origin: Origin | None = None
    """None in results of before it was kept."""
    is_traced: bool = True
    """Whether a trace was recorded; a function of one's own may watch no model."""
    doom: str = ""
    """Verdict for which the grid would stop it early; a cell that is ``done`` with one was audited:
    it ran to its end to see what stopping costs."""
    doomed_at: float = math.nan
    """Share of its way at which it was judged so."""
    trace_path: Path | None = None
    """Where the trace lies, for cells that ended and were watched."""

    def trace(self) -> Trace:
        """Read the trace of this cell from disk."""
        from gradscope.trace.table import Trace

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

    def _repr_html_(self) -> str:
        counts = Counter(result.status for result in self.results)
        told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        factors = [(name, shown.some(values)) for name, values in self.factors.items()]
        return shown.card(
            f"Study {self.name}: {len(self.results)} cells",
            shown.line(told),
            shown.table(("factor", "values"), factors),
        )

    @property
    def objectives(self) -> dict[str, str]:
        """Logged metric -> ``min`` or ``max``, as the grid says; of merged studies all."""
        found: dict[str, str] = {}
        for grid in (self.grid, *self.grid.values()):
            told = grid.get("objectives") if isinstance(grid, dict) else None
            found |= told if isinstance(told, dict) else {}
        return found
