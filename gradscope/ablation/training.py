"""train_cell(): one cell, trained by the built-in loop or by a function of one's own."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gradscope.ablation import trainer
from gradscope.ablation.grid import Cell
from gradscope.ablation.handle import Run
from gradscope.ablation.machine import denormals_flushed, environment, memory_kept
from gradscope.ablation.origin import origin_of
from gradscope.ablation.progress import Progress
from gradscope.ablation.settings import StopConfig
from gradscope.data import Splits
from gradscope.errors import ModelError
from gradscope.factory import load_factory
from gradscope.seeding import seeded
from gradscope.study.results import CellResult
from gradscope.trace.table import Trace


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
        doom=run.doom.verdict,
        doomed_at=run.doom.share_of_way,
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
