"""Run: one cell of a grid, as its training function is handed it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscope.ablation.doom import Doom
from gradscope.ablation.grid import Cell
from gradscope.ablation.measured import Measured
from gradscope.ablation.progress import Progress
from gradscope.ablation.settings import CellConfig, StopConfig
from gradscope.data import Splits, load
from gradscope.errors import ConfigError, ModelError
from gradscope.recording.scope import Scope
from gradscope.study.results import Status
from gradscope.watching import watch

_OBSERVE_EVERY_S = 0.5


class Run:
    """One cell of a grid, as its training function is handed it.

    Example:
        >>> def train(run: Run) -> None:
        ...     model = torch.nn.Linear(2, run.config.train.args["width"])
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     run.watch(model, optimizer)
        ...     for step in range(100):
        ...         if run.stop:
        ...             break
        ...         optimizer.zero_grad()
        ...         loss = model(torch.randn(8, 2)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         run.log(step, loss=loss)
    """

    def __init__(
        self,
        cell: Cell,
        *,
        splits: Splits | None = None,
        observe: Callable[[Progress], None] | None = None,
        objectives: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stop: StopConfig | None = None,
    ) -> None:
        self.config: CellConfig = cell.config
        """The resolved cell: ``run.config.train.args`` holds what the matrix varies."""
        self.seed: int = cell.config.seed
        """Of this cell; torch, ``random`` and NumPy are seeded with it already."""
        self.steps: int | None = None
        """How many steps it will take; set it, and progress and time left are shown."""
        self.measured = Measured()
        self.scope: Scope | None = None
        self.doom = Doom(cell.id, stop)
        self._splits = splits
        self._observe = observe
        self.objectives = dict(objectives or {})
        """Metrics that the grid compares -> ``min`` or ``max``."""
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._observed_at = -math.inf
        self.resume: Path | None = _newest(folder)
        """The newest file in `folder` when a cell that was killed is tried again, else None."""

    @property
    def folder(self) -> Path:
        """Where checkpoints go; kept while the cell is not done, then stored beside its result.

        A process may be killed while it writes: write under a name that ends in ``.tmp``, which
        `resume` passes over, and rename.
        """
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="gradscope-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    @property
    def splits(self) -> Splits:
        """Images that the grid names under ``data``.

        Raises:
            ConfigError: it names none.
        """
        if self._splits is None:
            if self.config.data is None:
                raise ConfigError("this grid names no images; add the key 'data', or load your own")
            self._splits = load(self.config.data)
        return self._splits

    @property
    def stop(self) -> bool:
        """True when the cell should end.

        Its loss or an objective is no number any more, or its gradients are beyond hope and the
        grid says to stop such cells.
        """
        self.measured.read()
        return bool(self.doom or self._fault())

    def watch(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        **settings: Any,
    ) -> Scope:
        """Record the gradients of a network, as the grid's ``record`` says; see `gradscope.watch`.

        Args:
            model: any module.
            optimizer: one or several.
            **settings: of `gradscope.watch`, before those of the grid.

        Returns:
            The scope; it is closed when the function ends.

        Raises:
            ModelError: the cell has a watched model already.
        """
        if self.scope is not None:
            raise ModelError("run.watch: a cell has one trace; put the networks into one module")
        record = self.config.record
        usual = {"every": record.every, "activations": record.activations}
        self.scope = watch(model, optimizer, **(usual | settings))
        self.measured.n_parameters = sum(p.numel() for p in model.parameters())
        return self.scope

    def log(self, step: int, /, **metrics: Any) -> None:
        """Note metrics of a step: any names, drawn over the steps and compared between cells.

        Args:
            step: from 0.
            **metrics: numbers, or tensors of one element; those on a device are read later, many
                at a time, so that no step waits for them. A ``loss`` of every step is drawn as the
                training loss.

        Raises:
            ModelError: a value is no number.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ModelError(f"run.log({step!r}, ...): the step is an integer from 0")
        self.measured.log(step, metrics)
        self.tell(step + 1)

    def tell(self, step: int, epoch: int = 0, loss: Callable[[], float] | None = None) -> None:
        """Show progress, about twice a second.

        Args:
            step: how many were taken.
            epoch: from 1, where there are epochs.
            loss: gives that of the last step; None: the logged one.
        """
        self.doom.judge(self.scope, step, self.steps)
        now = time.monotonic()
        if self._observe is None or now - self._observed_at < _OBSERVE_EVERY_S:
            return
        self._observed_at = now
        self.measured.read()
        if loss is None:
            told = self.measured.logged.get("loss")
            known = told[-1][1] if told else math.nan
        else:
            known = loss()
        rate = self.measured.images_per_s
        self._observe(Progress(step, self.steps or 0, epoch, known, rate))

    def close(self) -> None:
        """Detach the recorder and read what was logged."""
        if self.scope is not None:
            self.scope.close()
        self.measured.read()

    def status(self) -> tuple[Status, str]:
        """How the cell ended, and why where it is not ``done``."""
        reason = self._fault()
        if reason:
            return "diverged", reason
        if self.doom:
            return "stopped", str(self.doom)
        return "done", ""

    def _fault(self) -> str:
        """Why its loss or an objective is no number any more, on one line."""
        decisive = dict.fromkeys(["loss", *self.objectives])
        return self.measured.diverged or self.measured.fault(decisive)


def _newest(folder: Path | None) -> Path | None:
    if folder is None or not folder.is_dir():
        return None
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
