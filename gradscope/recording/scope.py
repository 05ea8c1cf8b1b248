"""watch(): hooks on any module, statistics kept on the module's own device.

Between two recorded steps nothing is attached to the network: only the optimizers' step hooks
count. For a recorded step its modules' calls are seen by `ModuleCalls`, which copies, pickles and
compiled code do not notice. Whatever of this runs within the user's calls runs behind a `Guard`.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from gradscope.errors import GradscopeError, RecorderError
from gradscope.recording.assemble import complete, git_revision, ordered
from gradscope.recording.buffer import Row, StatisticsBuffer, finish, histograms
from gradscope.recording.calls import ModuleCalls, is_ours
from gradscope.recording.groups import Groups
from gradscope.recording.guard import Guard, say
from gradscope.recording.loss_scale import LossScale
from gradscope.recording.loss_side import LossReader
from gradscope.recording.meters import Meters
from gradscope.recording.notes import Notes
from gradscope.recording.optimizers import Arguments, StepHooks, before_it_is_used, innermost
from gradscope.recording.outputs import ForwardReader
from gradscope.recording.parameters import ParameterReader
from gradscope.recording.strangers import Strangers
from gradscope.trace.table import RecordedStep, Trace
from gradscope.trace.vocabulary import STATISTICS

DEFAULT_EVERY = 50
"""A recorded step costs up to a tenth more on a CPU at a small batch; one in fifty is no matter."""

_WATCHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Scope]] = weakref.WeakKeyDictionary()


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
    optimizers = innermost(optimizer)
    existing = _WATCHED.get(_unwrapped(model))
    if existing is not None and existing() is not None:
        raise RecorderError(
            "this model is watched already; close() the first scope before a second"
        )
    settings = partial(
        Scope,
        buffer=StatisticsBuffer(every, max_steps, histograms=histograms),
        activations=activations,
        norms_only=norms_only,
        scaler=scaler,
    )
    try:
        return settings(model, optimizers)
    except GradscopeError:
        raise
    except Exception as fault:  # noqa: BLE001 - it is the user's training that is about to begin
        idle = settings(nn.Module(), ())
        idle._guard.trip("before the first step", fault)
        return idle


class Scope:
    """A running recording; made by `watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        buffer: StatisticsBuffer,
        *,
        activations: bool,
        norms_only: bool,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.epoch = 0
        """Written into the records of the steps that follow; set it where the loop knows it."""
        self.blind_spots: tuple[str, ...] = ()
        """What cannot be recorded and why, one line each."""
        self._model = model
        self._optimizers = optimizers
        self._buffer = buffer
        self._activations = activations
        self._norms_only = norms_only
        self._scaler = LossScale(scaler, buffer)
        self._meters = Meters(buffer)
        self._guard = Guard(self._stand_aside)
        self._loss = LossReader(buffer)
        self._notes = Notes(model)
        self._parameters = ParameterReader(model, optimizers, buffer, self._meters)
        self._groups = Groups(model, optimizers)
        self._strangers = Strangers(model)
        self._forward = ForwardReader(
            model,
            buffer,
            self._meters,
            self._guard,
            self._loss,
            norms_only=norms_only,
            before_backward=self._before_backward,
            after_backward=self._after_backward,
            on_another_pass=self._on_another_pass,
            on_compiled=self._on_compiled,
            on_first_pass=self._on_first_pass,
        )
        self._step = 0
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._measured = False
        self._recording = False
        self._trace: Trace | None = None
        before = self._guard.wrap("before the optimizer's step", self._before_step)
        after = self._guard.wrap("after the optimizer's step", self._after_step)
        self._steps = [StepHooks(each, before, after) for each in optimizers]
        _WATCHED[_unwrapped(model)] = weakref.ref(self)
        # A scope that is forgotten leaves the modules to themselves.
        weakref.finalize(self, ModuleCalls.detach, self._forward.calls).atexit = False
        self._guard.wrap("at its beginning", self._arm)()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def step(self) -> None:
        """End a step by hand, after backward; only without an optimizer.

        Raises:
            RecorderError: the scope has an optimizer, whose own step ends the step.
        """
        if self._optimizers:
            raise RecorderError("this scope has an optimizer, whose step() ends the step")
        if self._trace is not None:
            raise RecorderError("this scope is closed; watch the model again")
        self._guard.wrap("at the end of a step", self._step_by_hand)()

    def close(self) -> None:
        """Detach from the model and the optimizers; the trace stays available."""
        if self._trace is not None:
            return
        self._guard.wrap("at its end", self._look_for_unseen_steps)()
        self._leave()
        self._guard.wrap("at its end", self._buffer.release)()
        self._trace = self.trace()

    def trace(self) -> Trace:
        """What was recorded so far, whole steps only; copies the device buffer once."""
        if self._trace is not None:
            return self._trace
        try:
            return self._build_trace(self._buffer.rows())
        except Exception as fault:  # noqa: BLE001 - what was recorded is not lost with it
            self._guard.trip("when the trace was made", fault)
        try:
            return self._build_trace(self._buffer.rows_at_hand())
        except Exception:  # noqa: BLE001 - said already; nothing can be told but why
            return Trace(
                (),
                (),
                torch.empty((0, 0, len(STATISTICS)), dtype=torch.float32, device="cpu"),
                torch.empty((0, 0), dtype=torch.bool, device="cpu"),
                metadata={"blind_spots": list(self.blind_spots)},
            )

    def _leave(self) -> None:
        self._recording = False
        self._forward.calls.detach()
        self._forward.leave()
        for each in self._steps:
            each.remove()
        self._parameters.leave()
        _WATCHED.pop(_unwrapped(self._model), None)

    def _stand_aside(self, fault: str) -> None:
        """After a fault, for good."""
        try:
            self._leave()
        finally:
            self._say(fault)

    def _step_by_hand(self) -> None:
        if self._recording:
            self._parameters.measure(None)
            if not self._norms_only:
                self._parameters.remember_weights(None)
        self._end_step()

    def _arm(self) -> None:
        self._measured = False
        self._begun.clear()
        self._stepped.clear()
        self._recording = self._buffer.wants(self._step)
        if not self._recording:
            self._forward.calls.detach()
            return
        self._buffer.begin()
        self._scaler.begin()
        self._loss.begin(self._step)
        self._parameters.begin()
        self._forward.begin()
        if self._activations:
            self._install()

    def _install(self) -> None:
        calls = self._forward.calls
        if calls and not calls.displaced():  # still there from the last step
            return
        if _compiled(self._model):
            self._on_compiled()
        elif not calls:
            calls.attach({id(m): m for m in self._model.modules()})

    def _on_first_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._notes.take(module, args, output)
        if module is self._model:
            self._strangers.look((args, self._forward.lent), output)

    def _on_compiled(self) -> None:
        self._cannot_see(_COMPILED)

    def _cannot_see(self, blind_spot: str) -> None:
        self._activations = False
        self._forward.calls.detach()
        self._say(blind_spot)

    def _look_for_unseen_steps(self) -> None:
        if not self._step and self._parameters.trained():
            self._say(_NO_STEP)
        elif any(each.misses_steps() for each in self._steps):
            self._say(_REPLACED)

    def _say(self, blind_spot: str) -> None:
        self.blind_spots = (*self.blind_spots, blind_spot)
        say(blind_spot)

    def _on_another_pass(self) -> None:
        if self._scaler.updated():  # a GradScaler went on without calling optimizer.step()
            self._end_step(skipped=True)

    def _before_backward(self) -> None:
        if self._recording:
            self._parameters.before_backward()

    def _after_backward(self) -> None:
        if not self._recording:
            return
        for each in self._steps:
            each.look_again()
        self._scaler.remember()
        stepped = [each for each in self._optimizers if id(each) in self._stepped]
        self._parameters.after_backward(self._scaler.scale(), stepped)

    def _before_step(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        if id(optimizer) in self._stepped:  # a new round, though some optimizer never stepped
            self._end_step()
        first = id(optimizer) not in self._begun  # a step may call that of its base class
        self._begun.add(id(optimizer))
        if not self._recording:
            return None
        self._groups.note(self._step, optimizer)
        scale = self._scaler.left_to(optimizer)
        self._measured = False

        def measure() -> None:
            nonlocal first
            if self._recording:
                self._measured = True
                self._parameters.measure(optimizer, scale)
                if first and not self._norms_only:
                    self._parameters.remember_weights(optimizer)
                first = False

        guarded = self._guard.wrap("before the optimizer's step", measure)
        with_closure = before_it_is_used((args, kwargs), guarded)
        if with_closure is None:
            measure()
        return with_closure

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if id(optimizer) not in self._begun:  # the step around one that ended already
            return
        self._begun.discard(id(optimizer))
        if self._recording:
            if not self._measured:
                self._parameters.measure(optimizer)
            if not self._norms_only:
                self._parameters.measure_update(optimizer)
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self._end_step()

    def _end_step(self, *, skipped: bool = False) -> None:
        if self._recording:
            for blind_spot in self._parameters.end():
                self._say(blind_spot)
            seen = self._forward.end()
            self._meters.end()
            scaled = frozenset(self._forward.gradients if self._scaler.active else ())
            self._buffer.end(RecordedStep(self._step, self.epoch, skipped=skipped), scaled)
            if self._activations and not seen and _can_be_called(self._model):
                self._cannot_see(_COMPILED if _compiled(self._model) else _UNSEEN)
            self._forward.calls.thread = get_ident() if seen else None
        self._step += 1
        self._arm()

    def _build_trace(self, rows: list[Row]) -> Trace:
        columns = self._buffer.columns
        values, present = finish(rows, columns)
        steps = tuple(row.step for row in rows)
        structure = complete(
            self._forward.structure,
            self._model,
            self._parameters,
            self._groups,
            self._strangers,
        )
        structure = dataclasses.replace(
            self._notes.added(structure), loss=self._loss.side(steps, scaled=self._scaler.active)
        )
        return Trace(
            tensors=ordered(columns, structure),
            steps=steps,
            values=values,
            present=present,
            structure=structure,
            histograms=histograms(rows, len(columns)),
            logged=self._groups.logged(steps),
            metadata={
                "torch": torch.__version__,
                "git": git_revision(),
                "interval": self._buffer.interval,
                "steps": self._step,
                "blind_spots": [*self.blind_spots, *self._forward.truncated_notes()],
            },
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


_NO_STEP = (
    "no optimizer.step() was seen; call scope.step() after each step, and leave the optimizer out "
    "of watch()"
)

_REPLACED = (
    "optimizer.step was replaced while watching; steps after that were not seen; replace it first"
)

_COMPILED = (
    "the model is compiled: its parameter gradients are recorded, its activations cannot be; "
    "watch or probe the uncompiled model to see them"
)

_UNSEEN = (
    "no call of the network or of its parts was seen in a recorded step, as where it runs within a "
    "compiled function: its parameter gradients are recorded, its activations are not"
)


def _can_be_called(model: nn.Module) -> bool:
    """Whether any of its modules has a `forward`; a list of parameters has none."""
    return any(type(m).forward is not nn.Module.forward for m in model.modules())


def _compiled(model: nn.Module) -> bool:
    found: list[nn.Module | None] = [model]  # several times faster than model.modules()
    for module in found:
        if module is None:
            continue
        children, entry = module._modules, module._compiled_call_impl
        if "_orig_mod" in children or (entry is not None and not is_ours(entry)):
            return True
        if children:
            found.extend(children.values())
    return False
