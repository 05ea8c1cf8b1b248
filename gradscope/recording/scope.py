"""watch(): hooks on any module, statistics kept on the module's own device.

Between two recorded steps nothing is attached to the network: only the optimizers' step hooks
count. For a recorded step one *global* forward hook is installed, so that the modules themselves
stay untouched: they pickle, copy and save as if nobody watched.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from gradscope.errors import GradscopeWarning, RecorderError
from gradscope.recording.assemble import complete, git_revision, ordered
from gradscope.recording.buffer import StatisticsBuffer, finish, histograms
from gradscope.recording.groups import Groups
from gradscope.recording.loss_scale import LossScale
from gradscope.recording.meters import Meters
from gradscope.recording.optimizers import Arguments, StepHooks, before_it_is_used, innermost
from gradscope.recording.outputs import ForwardReader
from gradscope.recording.parameters import ParameterReader
from gradscope.recording.strangers import Strangers
from gradscope.trace.table import RecordedStep, Trace

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
    model = _unwrapped(model)
    existing = _WATCHED.get(model)
    if existing is not None and existing() is not None:
        raise RecorderError(
            "this model is watched already; close() the first scope before a second"
        )
    return Scope(
        model,
        optimizers,
        StatisticsBuffer(every, max_steps, histograms=histograms),
        activations=activations,
        norms_only=norms_only,
        scaler=scaler,
    )


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
        self._parameters = ParameterReader(model, optimizers, buffer, self._meters)
        self._groups = Groups(model, optimizers)
        self._strangers = Strangers(model)
        self._forward = ForwardReader(
            model,
            buffer,
            self._meters,
            norms_only=norms_only,
            before_backward=self._before_backward,
            after_backward=self._after_backward,
            on_another_pass=self._on_another_pass,
        )
        self._step = 0
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._measured = False
        self._recording = False
        self._trace: Trace | None = None
        self._hooks: list[RemovableHandle] = []
        self._steps = [StepHooks(o, self._before_step, self._after_step) for o in optimizers]
        _WATCHED[model] = weakref.ref(self)
        # A scope that is forgotten takes the hooks on all modules with it.
        weakref.finalize(self, _remove, self._hooks).atexit = False
        self._arm()

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
        if self._recording:
            self._parameters.measure(None)
            if not self._norms_only:
                self._parameters.remember_weights(None)
        self._end_step()

    def close(self) -> None:
        """Detach from the model and the optimizers; the trace stays available."""
        if self._trace is not None:
            return
        self._recording = False
        self._detach_forward()
        self._look_for_unseen_steps()
        for each in self._steps:
            each.remove()
        self._parameters.leave()
        _WATCHED.pop(self._model, None)
        self._trace = self._build_trace()
        self._buffer.release()

    def trace(self) -> Trace:
        """What was recorded so far, whole steps only; copies the device buffer once."""
        return self._trace if self._trace is not None else self._build_trace()

    def _arm(self) -> None:
        self._measured = False
        self._begun.clear()
        self._stepped.clear()
        self._recording = self._buffer.wants(self._step)
        if not self._recording or self._step == 1:  # the first step has a hook of its own
            self._detach_forward()
        if not self._recording:
            return
        self._buffer.begin()
        self._scaler.begin()
        self._parameters.begin()
        self._forward.begin()
        if self._activations:
            self._install()

    def _install(self) -> None:
        if self._hooks:  # still there from the last step
            return
        if _compiled(self._model):
            self._cannot_see(_COMPILED)
            return
        self._hooks.append(register_module_forward_hook(self._forward.hook))
        if self._forward.has_fused_recurrence:  # a hook before every module costs, so only then
            forward = weakref.ref(self._forward)

            def lend(module: nn.Module, args: Any) -> Any:
                reader = forward()
                return None if reader is None else reader.lend(module, args)

            self._hooks.append(register_module_forward_pre_hook(lend))
        if self._step == 0:
            strangers = register_module_forward_hook(self._strangers.hook, with_kwargs=True)
            self._hooks.append(strangers)
            first_call = weakref.WeakMethod(self._first_call)

            def before(module: nn.Module, args: Any) -> None:
                del args
                watching = first_call()
                if watching is not None:
                    watching(module)

            self._hooks.append(register_module_forward_pre_hook(before))

    def _first_call(self, module: nn.Module) -> None:
        """Step aside before `torch.compile` traces the hooks of a model that it wraps."""
        if getattr(module, "_orig_mod", None) is self._model:
            self._detach_forward()
            self._cannot_see(_COMPILED)

    def _detach_forward(self) -> None:
        _remove(self._hooks)

    def _cannot_see(self, blind_spot: str) -> None:
        self._activations = False
        self._say(blind_spot)

    def _look_for_unseen_steps(self) -> None:
        if not self._step and self._parameters.trained():
            self._say(_NO_STEP)
        elif any(each.misses_steps() for each in self._steps):
            self._say(_REPLACED)

    def _say(self, blind_spot: str) -> None:
        self.blind_spots = (*self.blind_spots, blind_spot)
        warnings.warn(f"gradscope: {blind_spot}", GradscopeWarning, stacklevel=2)

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

        with_closure = before_it_is_used((args, kwargs), measure)
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
            self._forward.end()
            self._meters.end()
            scaled = frozenset(self._forward.gradients if self._scaler.active else ())
            self._buffer.end(RecordedStep(self._step, self.epoch, skipped=skipped), scaled)
        self._step += 1
        self._arm()

    def _build_trace(self) -> Trace:
        rows = self._buffer.rows()
        columns = self._buffer.columns
        values, present = finish(rows, columns)
        structure = dataclasses.replace(
            complete(self._forward.structure, self._model, self._parameters.ever()),
            groups=self._groups.describe(),
            strangers=self._strangers.named(self._groups.held()),
        )
        self._groups.forget_all_but([row.step for row in rows])
        return Trace(
            tensors=ordered(columns, structure),
            steps=tuple(row.step for row in rows),
            values=values,
            present=present,
            structure=structure,
            histograms=histograms(rows, len(columns)),
            logged=self._groups.logged(),
            metadata={
                "torch": torch.__version__,
                "git": git_revision(),
                "interval": self._buffer.interval,
                "steps": self._step,
                "blind_spots": [*self.blind_spots, *self._forward.truncated_notes()],
            },
        )


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
    hooks.clear()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper, whose parameters have the user's names."""
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


def _compiled(model: nn.Module) -> bool:
    found: list[nn.Module | None] = [model]  # several times faster than model.modules()
    for module in found:
        if module is None:
            continue
        children = module._modules
        if module._compiled_call_impl is not None or "_orig_mod" in children:
            return True
        if children:
            found.extend(children.values())
    return False
