"""Run and train_cell(): one cell, trained by the built-in loop or by a function of one's own."""

from __future__ import annotations

import hashlib
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.ablation import trainer
from gradscope.ablation.grid import Cell
from gradscope.ablation.machine import denormals_flushed, environment, memory_kept
from gradscope.ablation.origin import origin_of
from gradscope.ablation.settings import CellConfig, StopConfig
from gradscope.data import Splits, load
from gradscope.diagnosis.judge import diagnose
from gradscope.errors import ConfigError, ModelError
from gradscope.factory import load_factory
from gradscope.recording.scope import Scope
from gradscope.recording.watching import watch
from gradscope.seeding import seeded
from gradscope.study.results import CellResult, Epoch, History, Status
from gradscope.trace.table import Trace

_OBSERVE_EVERY_S = 0.5

_MOST_PENDING = 64
"""Logged tensors that wait on their device until they are read, all in one copy."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of one cell is."""

    step: int
    """Optimizer steps taken so far."""
    total_steps: int
    """0 where nobody knows."""
    epoch: int = 0
    """From 1; 0 where nobody tells."""
    loss: float = math.nan
    """Of the last step."""
    images_per_s: float = 0.0
    """Training images per second so far, evaluation not counted; 0 where there are none."""


@dataclass
class Measured:
    """What was measured of a cell so far; the built-in loop writes here, others by `Run.log`."""

    step_loss: list[float] = field(default_factory=list)
    """Of each step from 0."""
    epochs: list[Epoch] = field(default_factory=list)
    logged: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    n_parameters: int = 0
    images_per_s: float = 0.0
    diverged: str = ""
    """Why it counts as diverged, on one line."""

    def history(self) -> History:
        """As it is stored; a loss that was logged at every step from 0 is that of each step."""
        losses = self.step_loss
        told = self.logged.get("loss", [])
        if not losses and [step for step, _ in told] == list(range(len(told))):
            losses = [value for _, value in told]
        logged = {name: tuple(values) for name, values in self.logged.items()}
        return History(tuple(losses), tuple(self.epochs), logged)


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
        self.doom = ""
        """The verdict for which the grid would stop it, once it was judged so."""
        self._doom_at = 0
        self._stop = stop
        self._is_audited = stop is not None and chance(cell.id) < stop.audit
        self._splits = splits
        self._observe = observe
        self.objectives = dict(objectives or {})
        """Metrics that the grid compares -> ``min`` or ``max``."""
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._pending: list[tuple[str, int, Tensor]] = []
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
        self._read()
        return self.is_doomed or bool(self.measured.diverged or self._bad())

    @property
    def is_doomed(self) -> bool:
        """Whether it is to be stopped for its verdict; doomed cells that are audited are not."""
        return bool(self.doom) and not self._is_audited

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
        for name, value in metrics.items():
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                if value.numel() != 1:
                    raise _no_number(step, name, value)
                self._pending.append((name, step, value.detach().reshape(()).clone()))
            else:
                self._note(name, step, _number(step, name, value))
        if len(self._pending) >= _MOST_PENDING:
            self._read()
        self.tell(step + 1)

    def tell(self, step: int, epoch: int = 0, loss: Callable[[], float] | None = None) -> None:
        """Show progress, about twice a second.

        Args:
            step: how many were taken.
            epoch: from 1, where there are epochs.
            loss: gives that of the last step; None: the logged one.
        """
        self._judge(step)
        now = time.monotonic()
        if self._observe is None or now - self._observed_at < _OBSERVE_EVERY_S:
            return
        self._observed_at = now
        self._read()
        if loss is None:
            told = self.measured.logged.get("loss")
            known = told[-1][1] if told else math.nan
        else:
            known = loss()
        rate = self.measured.images_per_s
        self._observe(Progress(step, self.steps or 0, epoch, known, rate))

    def _judge(self, step: int) -> None:
        """Once, at the share of its way that the grid names."""
        stop = self._stop
        if stop is None or self.scope is None or not self.steps or step < stop.after * self.steps:
            return
        self._stop = None
        verdict = diagnose(self.scope.trace()).verdict.value
        if verdict in stop.verdicts:
            self.doom, self._doom_at = verdict, step

    def close(self) -> None:
        """Detach the recorder and read what was logged."""
        if self.scope is not None:
            self.scope.close()
        self._read()

    def status(self) -> tuple[Status, str]:
        """How the cell ended, and why where it is not ``done``."""
        reason = self.measured.diverged or self._bad()
        if reason:
            return "diverged", reason
        if self.is_doomed:
            return "stopped", f"{self.doom} at step {self._doom_at} of {self.steps}"
        return "done", ""

    @property
    def share_of_way(self) -> float:
        """How far it was when it was judged to be doomed; NaN where it was not."""
        return self._doom_at / self.steps if self.doom and self.steps else math.nan

    def _bad(self) -> str:
        """The first of the decisive metrics whose last value is no number, on one line."""
        for name in dict.fromkeys(["loss", *self.objectives]):
            values = self.measured.logged.get(name)
            if values and not math.isfinite(values[-1][1]):
                step, value = next(v for v in values if not math.isfinite(v[1]))
                return f"{name} became {value} at step {step}"
        return ""

    def _note(self, name: str, step: int, value: float) -> None:
        self.measured.logged.setdefault(name, []).append((step, value))

    def _read(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, []
            values = torch.stack([value.double() for _, _, value in pending]).tolist()
            for (name, step, _), value in zip(pending, values, strict=True):
                self._note(name, step, value)


def chance(cell: str) -> float:
    """A number from 0 to 1 that depends on the id of a cell alone, so that audits can be traced."""
    return int.from_bytes(hashlib.sha256(f"audit/{cell}".encode()).digest()[:6]) / 2**48


def _number(step: int, name: str, value: Any) -> float:
    if isinstance(value, str | bytes) or (isinstance(value, Tensor) and value.is_meta):
        raise _no_number(step, name, value)
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_number(step, name, value) from error


def _no_number(step: int, name: str, value: Any) -> ModelError:
    what = f"a {type(value).__name__}"
    if isinstance(value, str):
        what = f"text ({value[:40]!r})"
    elif isinstance(value, Tensor):
        what = f"a tensor of shape {tuple(value.shape)} on {value.device}"
    return ModelError(
        f"run.log({step}, {name}=...): {what}; log one number, as loss.item() or loss.mean()"
    )


def _newest(folder: Path | None) -> Path | None:
    if folder is None or not folder.is_dir():
        return None
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def train_cell(
    cell: Cell,
    splits: Splits | None = None,
    observe: Callable[[Progress], None] | None = None,
    *,
    objectives: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stop: StopConfig | None = None,
) -> tuple[CellResult, Trace | None]:
    """Train one cell from its seed, and record the gradients of what it watches.

    Equal cells give bit-identical losses and weights on one CPU with one number of threads.
    The caller's random streams and floating-point mode are left as they were.

    Args:
        cell: what to train, and how.
        splits: images and classes; uint8 pixels are scaled to [-1, 1]; None: those of its data.
        observe: told about twice a second how far it is.
        objectives: metrics that must have been logged.
        folder: for checkpoints, which are found there when the cell is tried again.
        stop: when to end it early; None: never.

    Returns:
        The result: ``done``, ``diverged`` when the loss became non-finite, or ``stopped``; and the
        trace.

    Raises:
        GradscopeError: the cell cannot be trained as it is.
        Exception: whatever the user's own function raises.
    """
    started = time.perf_counter()
    config = cell.config
    device = best_device()
    with seeded(config.seed), denormals_flushed(), memory_kept():
        run = Run(
            cell, splits=splits, observe=observe, objectives=objectives, folder=folder, stop=stop
        )
        notes = _train(run)
    status, reason = run.status()
    trace = run.scope.trace() if run.scope is not None else None
    data = run.splits.fingerprint if config.data is not None else ""
    result = CellResult(
        id=cell.id,
        factors=dict(cell.factors),
        seed=config.seed,
        status=status,
        config=config.model_dump(mode="json"),
        history=run.measured.history(),
        classes=run.measured.classes,
        error=reason,
        n_parameters=run.measured.n_parameters,
        images_per_s=run.measured.images_per_s,
        duration_s=time.perf_counter() - started,
        environment=environment()
        | {"device": device.type, "git": trace.metadata["git"] if trace is not None else ""},
        notes=notes,
        origin=origin_of(config, data, loaded=True),
        is_traced=trace is not None,
        doom=run.doom,
        doomed_at=run.share_of_way,
    )
    return result, trace


def _train(run: Run) -> tuple[str, ...]:
    """Call the function; what is worth a line though it went well."""
    spec = run.config.train.function
    if not spec:
        try:
            trainer.train(run)
        finally:
            run.close()
        return ()
    function = load_factory(spec)
    random.seed(run.seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(run.seed % 2**32)
    try:
        returned = function(run)
    finally:
        run.close()
    logged = run.measured.logged
    if not logged:
        raise ModelError(f"{spec} logged nothing; call run.log(step, loss=...) as it trains")
    missing = [name for name in run.objectives if name not in logged]
    if missing and run.status()[0] == "done":
        raise ModelError(
            f"{spec} never logged the objective '{missing[0]}'; logged: {', '.join(logged)}"
        )
    if returned is None:
        return ()
    kind = type(returned).__name__
    return (f"{spec} returned a {kind}, which is dropped; log it, or write it to run.folder",)


def best_device() -> torch.device:
    """The GPU where there is one, ready before random generators are kept."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Before `seeded`, which leaves alone what is not in use.
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch lacks the annotation
    return torch.device("cuda")
