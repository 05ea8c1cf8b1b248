"""watch(): begins a recording, and refuses what makes no sense."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gradscope.errors import GradscopeError, RecorderError, nearest
from gradscope.recording.assemble import git_revision
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.judging import Judging
from gradscope.recording.live import Live, Log
from gradscope.recording.optimizers import innermost
from gradscope.recording.readable import DETAILS, Detail
from gradscope.recording.saving import Saving
from gradscope.recording.scope import Scope
from gradscope.recording.watched import is_watched

DEFAULT_EVERY = 50
"""A recorded step costs up to a tenth more on a CPU at a small batch; one in fifty is no matter."""


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    every: int = DEFAULT_EVERY,
    activations: bool = True,
    norms_only: bool = False,
    histograms: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    max_steps: int = 512,
    log: Log | None = None,
    detail: Detail = "blocks",
    on_finding: Callable[[Any], Any] | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Scope:
    """Record the gradients of a network while it trains, without touching the training loop.

    Args:
        model: any module; wrapped ones (DDP, FSDP, compiled) too.
        optimizer: one or several; their ``step()`` ends a step. What wraps one (Accelerate,
            Transformers, Lightning, Opacus, fastai, SAM, Lookahead) is unwrapped. Without, call
            ``scope.step()``.
        every: record every so many steps, beginning with the first; by default so few that the
            step is no more than one per cent slower on average.
        activations: record module outputs and their gradients too, not only parameter gradients.
        norms_only: of outputs take nothing but the norm and the share of NaN and Inf, and leave out
            weights and their updates.
        histograms: count log2|g| of each parameter gradient in bins of one power of two.
        scaler: the GradScaler, if there is one, so that skipped steps are known and gradients of
            activations are unscaled. Parameter gradients are unscaled without it.
        max_steps: at most so many steps are kept; beyond, every second one is dropped and the
            interval doubles. The first 16 recorded steps always stay.
        log: called as ``log(numbers, step)`` after each recorded step, in the thread of the loop,
            with a dict of floats: ``wandb.log``, ``mlflow.log_metrics``, any function. The host
            waits for no device: a GPU's numbers follow a step or so later. One that raises is
            warned about and called no more.
        detail: what ``log`` is told of: ``blocks``, or ``parameters`` for every tensor.
        on_finding: called with a `gradscope.diagnosis.Change` when a warning or an error of the
            diagnosis appears, worsens or ends, in the thread of the loop. The run is diagnosed so
            seldom that it takes less than one per cent of the time, and once at the end.
        save: a Parquet file that is written as it goes, so seldom that it takes less than one per
            cent of the time, and whole at any moment: a training that is killed loses what was
            recorded since the last write. `Trace.load`, ``gradscope diagnose``, ``report`` and
            ``follow`` read it meanwhile. With several ranks give one of them a path, or each its
            own.

    Returns:
        A scope; use it with ``with``, or call ``close()``.

    Raises:
        RecorderError: the model is watched already, or an argument makes no sense.

    Example:
        >>> import torch, gradscope
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with gradscope.watch(model, optimizer, every=1) as scope:
        ...     model(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> len(scope.trace())  # two gradients, the output and its gradient
        4
    """
    if not isinstance(model, nn.Module):
        raise RecorderError(f"watch() needs a torch.nn.Module, got {type(model).__name__}")
    if every < 1 or max_steps < 32:
        raise RecorderError(
            f"every={every} must be at least 1 and max_steps={max_steps} at least 32"
        )
    if detail not in DETAILS:
        raise RecorderError(f"unknown detail '{detail}'; {nearest(detail, DETAILS)}")
    optimizers = innermost(optimizer)
    if is_watched(model):
        raise RecorderError(
            "this model is watched already; close() the first scope before a second"
        )
    judging = None
    if log is not None or on_finding is not None:
        from gradscope.diagnosis.changes import Follower  # takes a while, and only here is it used

        judging = Judging(on_finding, Follower())
    saving = Saving(save) if save is not None else None
    live = None
    if judging is not None or saving is not None:
        live = Live(log, detail, judging, saving)
        git_revision()  # asks another process: now, not within a step
    settings = partial(
        Scope,
        buffer=StatisticsBuffer(every, max_steps, histograms=histograms),
        activations=activations,
        norms_only=norms_only,
        scaler=scaler,
        live=live,
    )
    try:
        return settings(model, optimizers)
    except GradscopeError:
        raise
    except Exception as fault:  # noqa: BLE001 - it is the user's training that is about to begin
        idle = settings(nn.Module(), ())
        idle._guard.trip("before the first step", fault)  # noqa: SLF001 - a scope born at fault
        return idle
