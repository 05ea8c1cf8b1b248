"""Scope: hooks on any module, statistics kept on the module's own device.

Between two recorded steps nothing is attached to the network: only the optimizers' step hooks
count. For a recorded step its modules' calls are seen by `ModuleCalls`, which copies, pickles and
compiled code do not notice. Whatever of this runs within the user's calls runs behind a `Guard`.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from gradscope import shown
from gradscope.errors import RecorderError
from gradscope.recording import watched
from gradscope.recording.assemble import complete, git_revision, ordered
from gradscope.recording.blind_spots import (
    COMPILED,
    NO_STEP,
    REPLACED,
    UNSEEN,
    can_be_called,
    is_compiled,
)
from gradscope.recording.buffer import Row, StatisticsBuffer
from gradscope.recording.calls import ModuleCalls
from gradscope.recording.closures import Arguments, before_it_is_used
from gradscope.recording.finishing import finish, histograms
from gradscope.recording.groups import Groups
from gradscope.recording.guard import Guard, say
from gradscope.recording.live import Live
from gradscope.recording.logged import Logged, with_losses
from gradscope.recording.loss_scale import LossScale
from gradscope.recording.loss_side import LossReader
from gradscope.recording.meters import Meters
from gradscope.recording.notes import Notes
from gradscope.recording.outputs import ForwardReader
from gradscope.recording.parameters import ParameterReader
from gradscope.recording.step_hooks import StepHooks
from gradscope.recording.strangers import Strangers
from gradscope.recording.unlisted import unlisted
from gradscope.recording.unstepped import Unstepped
from gradscope.trace.table import RecordedStep, Trace, nothing


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
        live: Live | None = None,
    ) -> None:
        self.epoch = 0
        """Written into the records of the steps that follow; set it where the loop knows it."""
        self.blind_spots: tuple[str, ...] = ()
        """What cannot be recorded and why, one line each."""
        self._name = type(model).__name__
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
        buffer.on_full = self._notes.modes.look
        self._parameters = ParameterReader(model, optimizers, buffer, self._meters)
        self._groups = Groups(model, optimizers)
        self._logged = Logged(buffer.keeps)
        self._live = live
        self._strangers = Strangers(model)
        self._unstepped = Unstepped()
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
            on_compiled=partial(self._cannot_see, COMPILED),
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
        watched.note(model, self)
        # A scope that is forgotten leaves the modules to themselves.
        self._forgotten = weakref.finalize(self, ModuleCalls.detach, self._forward.calls)
        self._forgotten.atexit = False
        self._guard.wrap("at its beginning", self._arm)()

    def _repr_html_(self) -> str:
        state = ("running", shown.WELL) if self._trace is None else ("closed", shown.PLAIN)
        return shown.card(
            f"Scope of {self._name}",
            shown.line(
                f"{self._step:,} steps seen, {self._buffer.recorded:,} kept, one in "
                f"{self._buffer.interval:,} recorded"
            ),
            *(shown.line(f"not seen: {each}") for each in self.blind_spots),
            badge=state,
        )

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
        if self._trace is not None:
            raise RecorderError("this scope is closed; watch the model again")
        if self._optimizers:
            raise RecorderError("this scope has an optimizer, whose step() ends the step")
        self._guard.wrap("at the end of a step", self._step_by_hand)()

    def log(self, **metrics: Any) -> None:
        """Keep numbers with the trace, in `Trace.logged`; nothing is raised in the loop.

        A name first told before the first step has ended is about the step that runs, one first
        told later about the step that ended last, so call it on the same side of the optimizer's
        step each time. What is called ``loss`` serves the diagnosis where no backward pass told it.

        Args:
            metrics: numbers, or tensors of one number on any device, which are read later: the host
                does not wait. What is neither is left out with a warning.

        Example:
            >>> scope.log(loss=loss, accuracy=0.9)  # doctest: +SKIP
        """
        if self._trace is not None:
            say("log() was called on a closed scope; what it was told is not kept")
            return
        self._guard.wrap("in log()", self._log)(metrics)

    def _log(self, metrics: dict[str, Any]) -> None:
        for complaint in self._logged.note(self._step, metrics):
            say(complaint)

    def close(self) -> None:
        """Detach from the model and the optimizers; the trace stays available."""
        if self._trace is not None:
            return
        self._guard.wrap("at its end", self._look_for_unseen_steps)()
        self._leave()
        if self._live is not None:
            self._guard.wrap("at its end", partial(self._tell, self._live.end, self._step))()
        self._guard.wrap("at its end", self._buffer.release)()
        self._trace = self.trace()
        if self._live is not None:
            self._live.close(self._trace)
        self._let_go()

    def _let_go(self) -> None:
        """Hold nothing of the network: a user who deletes it has its memory back at once."""
        self._forgotten.detach()
        del self._model, self._optimizers, self._notes, self._groups, self._strangers
        del self._forward, self._parameters, self._steps, self._loss

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
            return nothing(blind_spots=list(self.blind_spots))

    def _leave(self) -> None:
        if self._trace is not None:
            return
        self._recording = False
        self._forward.calls.detach()
        self._forward.leave()
        for each in self._steps:
            each.remove()
        self._parameters.leave()
        watched.forget(self._model)

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
                self._parameters.remember_weights()
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
        if not calls:  # else still there from the last step
            calls.attach({id(m): m for m in self._model.modules()})

    def _on_first_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._notes.take(module, args, output)
        self._strangers.meet(module)
        if module is self._model:
            self._strangers.look((args, self._forward.lent), output)
            blind_spot = unlisted(module)
            if blind_spot and blind_spot not in self.blind_spots:
                self._say(blind_spot)

    def _cannot_see(self, blind_spot: str) -> None:
        self._activations = False
        self._forward.calls.detach()
        self._say(blind_spot)

    def _look_for_unseen_steps(self) -> None:
        if not self._step and NO_STEP not in self.blind_spots and self._parameters.trained():
            self._say(NO_STEP)
        elif any(each.misses_steps() for each in self._steps):
            self._say(REPLACED)

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
        waiting = self._optimizers and not (self._step or self._begun or stepped)
        if waiting and self._unstepped.after_backward(self._parameters.with_gradient()):
            self._say(NO_STEP)

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
                    self._parameters.remember_weights()
                first = False

        if len(args) > 1 or kwargs:
            guarded = self._guard.wrap("before the optimizer's step", measure)
            with_closure = before_it_is_used((args, kwargs), guarded)
            if with_closure is not None:
                return with_closure
        measure()
        return None

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
            copies = self._buffer.copies() if self._live is not None else []
            row = self._buffer.end(RecordedStep(self._step, self.epoch, skipped=skipped), scaled)
            if self._live is not None:
                self._live.add(row, copies)
            unseen = not (seen or self._parameters.stand_still())
            if self._activations and unseen and can_be_called(self._model):
                self._cannot_see(COMPILED if is_compiled(self._model) else UNSEEN)
            self._forward.calls.thread = get_ident() if seen else None
        self._step += 1
        self._unstepped.forget()
        self._arm()
        if self._live is not None:
            self._tell(self._live.tell)

    def _tell(self, listen: Callable[..., None], *args: Any) -> None:
        def trace() -> Trace:
            return self._build_trace(self._buffer.rows_at_hand())

        listen(self._buffer, self._forward.structure, trace, *args)

    def _build_trace(self, rows: list[Row]) -> Trace:
        columns = self._buffer.columns
        values, present = finish(rows, columns)
        logged = self._logged.series()
        steps = with_losses(tuple(row.step for row in rows), logged)
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
            logged={**logged, **self._groups.logged(steps)},
            metadata={
                "torch": torch.__version__,
                "git": git_revision(),
                "interval": self._buffer.interval,
                "steps": self._step,
                "blind_spots": [*self.blind_spots, *self._forward.truncated_notes()],
            },
        )
