"""ModuleCalls: sees what the modules of a network are called with and give, while it is attached.

torch's hooks on modules would not do. A hook on all modules is seen by Dynamo in every compiled
function of the process, one on a module by whoever copies it, and by layers that take another way
where there is a hook. But before a module calls its `forward`, torch asks it for
`_compiled_call_impl`, where `Module.compile()` puts compiled code: Dynamo looks past it, and
`Module.__getstate__` leaves it out of copies and pickles.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.recording.compiled import CompiledParts, plainly
from gradscope.recording.guard import Guard
from gradscope.recording.unseen import compiler, observed, unobserved, unseen_by_dynamo

_ENTRY = "_compiled_call_impl"

_in_backward = torch._C._current_graph_task_id  # DDP asks the same way whether one is running
_saving = torch._C._autograd._top_saved_tensors_default_hooks
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class Reader(Protocol):
    """What is told of the calls."""

    def enter(self) -> bool:
        """A call from outside begins; whether it and what it calls are to be seen."""

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module gave an output."""

    def saw_again(self, module: nn.Module, output: Tensor) -> bool:
        """The same, of one plain tensor, where no mode of a user sees what is done with it.

        Returns:
            Whether it was as in an earlier step, and is taken.
        """

    def left(self, module: nn.Module, output: Any) -> None:
        """A call from outside has ended, after it was seen."""

    def again(self, module: nn.Module, output: Any) -> None:
        """A call from outside has ended that was not to be seen."""

    def failed(self) -> None:
        """A call from outside raised."""

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a recurrent layer is to be called with."""

    @property
    def parts(self) -> CompiledParts:
        """What of the network is compiled."""

    def compiled(self) -> None:
        """There is a compiled part that cannot be looked into."""


class ModuleCalls:
    """The calls of the modules of one network; keeps neither the network nor the reader alive."""

    def __init__(self, reader: Reader, guard: Guard) -> None:
        self.reader = weakref.ref(reader)
        self.guard = guard
        self.depth = 0
        """Calls of the network's modules that are running, one within the other."""
        self.open = False
        """Whether the outermost of them is to be seen."""
        self.thread: int | None = None
        """The thread that trains; None: the first one that runs the network with gradients."""
        self.within = False
        """Whether a compiled part is running."""
        self._attached: list[weakref.ref[_Call]] = []

    def __bool__(self) -> bool:
        return bool(self._attached)

    def attach(self, modules: dict[int, nn.Module]) -> None:
        """Stand before the calls of modules, given by identity."""
        for module in modules.values():
            self._stand_before(module)

    def _stand_before(self, module: nn.Module) -> None:
        call = _Call(module, self)
        module.__dict__[_ENTRY] = call
        calls, before = weakref.ref(self), weakref.ref(module)

        def displaced(gone: weakref.ref[_Call]) -> None:  # nobody else holds on to it
            known, module = calls(), before()
            if known is not None and module is not None and gone in known._attached:
                known._attached.remove(gone)
                if module.__dict__.get(_ENTRY) is not None:  # by `Module.compile()`
                    known._stand_before(module)

        self._attached.append(weakref.ref(call, displaced))

    def detach(self) -> None:
        """Leave the modules as they were."""
        attached, self._attached = self._attached, []
        self.open = False
        for known in attached:
            call = known()
            if call is not None:
                call.leave()

    def elsewhere(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call in another thread, of another module with a copied dictionary, or compiled."""
        asks = sys._getframe(2)  # who asked for `_compiled_call_impl`
        caller = asks.f_locals.get("self")
        if isinstance(caller, nn.Module) and caller is not call.module:
            implementation: Any = type(caller)._call_impl
            return implementation(caller, *args, **kwargs)  # a replica of DataParallel
        if self.thread is None and torch.is_grad_enabled():
            self.thread = get_ident()
            return call(*args, **kwargs)
        output = call.inner(*args, **kwargs)
        if compiler() is None and _in_backward() != -1:
            call.saw(args, output)  # checkpointing computes on the thread of the backward pass
        return output

    def part(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of something compiled."""
        function, through = self._way_into(call, compiler())
        hidden = _hide(call.module)
        self.within = True
        try:
            return through(function, args, kwargs)
        finally:
            self.within = False
            if self._attached:
                _show(hidden)

    def _way_into(
        self, call: _Call, compiles: Any
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What is to be called, and what takes it with its arguments."""
        reader = self.reader()
        if reader is None or not self.open or self.guard.faulty:
            return call.inner, plainly
        if not call.module._modules or not torch.is_grad_enabled():  # nothing inside, or to learn
            return call.inner, plainly
        try:
            # A checkpoint in eager code compares what is saved when it computes a part again.
            if _in_backward() == -1 and _saving(True) is None:
                compiled = call.compiled
                function = call.inner if compiled is None else compiled._torchdynamo_orig_callable
                parts = reader.parts
                through = parts.entry(compiled) if compiles is None else parts.variant(compiles)
                if through is not None:
                    parts.root = call.module
                    return function, through
            reader.compiled()
        except Exception as fault:  # noqa: BLE001 - that is what the guard is for
            self.guard.trip("at a call of a compiled part", fault)
        return call.inner, plainly


class _Call:
    """What torch calls instead of one module; to copies and pickles it is None."""

    __slots__ = ("__weakref__", "_calls", "_lends", "compiled", "inner", "module")

    def __init__(self, module: nn.Module, calls: ModuleCalls) -> None:
        before = module.__dict__.get(_ENTRY)
        self.module = module
        self.inner = module._call_impl if before is None else before
        """What is to be called: the module, or what another scope put in its place."""
        self.compiled = _compiled(module, before)
        """What `torch.compile` put in its place."""
        self._calls = calls
        self._lends = isinstance(module, nn.RNNBase)

    @property  # type: ignore[misc]  # what it claims to be is not what it is
    def __class__(self) -> type:
        """For torch.jit a function, of which it knows that it need not understand it.

        It asks of each attribute of a module, and gives up at objects of other classes.
        """
        asks = sys._getframe(1).f_back  # behind `inspect.isfunction`
        by_jit = asks is not None and asks.f_globals.get("__name__") == "torch.jit._recursive"
        return FunctionType if by_jit else _Call

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def leave(self) -> None:
        """Leave the module to itself, or to another scope."""
        attributes = self.module.__dict__
        above = attributes.get(_ENTRY)
        if above is self:
            if self.inner == self.module._call_impl:
                del attributes[_ENTRY]
            else:
                attributes[_ENTRY] = self.inner
            return
        while isinstance(above, _Call):
            if above.inner is self:
                above.inner = self.inner
                return
            above = above.inner

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if _is_dynamo_compiling():  # a module with hooks of its own, whose call Dynamo traces
            return self.inner(*args, **kwargs)
        calls = self._calls
        if calls.thread != get_ident():
            return calls.elsewhere(self, args, kwargs)
        if not calls.depth:
            self._enter()
        calls.depth += 1
        try:
            if not calls.within and (self.compiled is not None or compiler() is not None):
                output = calls.part(self, args, kwargs)
            else:
                if self._lends and calls.open:
                    args = self._lent(args)
                output = self.inner(*args, **kwargs)
        except BaseException:
            calls.depth -= 1
            if not calls.depth:
                self._failed()
            raise
        calls.depth -= 1
        if calls.open:
            self.saw((*args, *kwargs.values()) if kwargs else args, output)
        elif not calls.depth:
            self._again(output)
        return output

    # Faults are caught here, in place: a wrapper a call would cost as much as the calls themselves.

    def _enter(self) -> None:
        calls = self._calls
        reader = calls.reader()
        calls.open = False
        if reader is not None and not calls.guard.faulty:
            try:
                calls.open = reader.enter()
            except Exception as fault:  # noqa: BLE001 - that is what the guard is for
                calls.guard.trip("at the beginning of a forward pass", fault)

    def saw(self, args: tuple[Any, ...], output: Any) -> None:
        """Tell of an output."""
        calls = self._calls
        reader = calls.reader()
        if reader is None or calls.guard.faulty:
            return
        try:
            plain = type(output) is Tensor and not observed()
            if not (plain and reader.saw_again(self.module, output)):
                unobserved(reader.saw, self.module, args, output)
            if not calls.depth:
                unobserved(reader.left, self.module, output)
        except Exception as fault:  # noqa: BLE001 - that is what the guard is for
            calls.guard.trip(f"at an output of {type(self.module).__name__}", fault)

    def _again(self, output: Any) -> None:
        calls = self._calls
        reader = calls.reader()
        if reader is None or calls.guard.faulty:
            return
        try:
            unobserved(reader.again, self.module, output)
        except Exception as fault:  # noqa: BLE001 - that is what the guard is for
            calls.guard.trip("after a further forward pass", fault)

    def _failed(self) -> None:
        calls = self._calls
        reader = calls.reader()
        if reader is not None and calls.open and not calls.guard.faulty:
            try:
                reader.failed()
            except Exception as fault:  # noqa: BLE001 - that is what the guard is for
                calls.guard.trip("after a forward pass that failed", fault)

    def _lent(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        calls = self._calls
        reader = calls.reader()
        if reader is not None and not calls.guard.faulty:
            try:
                lent: tuple[Any, ...] = unobserved(reader.lend, self.module, args)
                return lent  # noqa: TRY300 - nothing else may raise here
            except Exception as fault:  # noqa: BLE001 - that is what the guard is for
                calls.guard.trip("at the input of a recurrent layer", fault)
        return args


def _compiled(module: nn.Module, before: Any) -> Any:
    """What `torch.compile` put before a module's call, or made of the module that it wraps."""
    if isinstance(before, _Call):
        return before.compiled
    if before is None and "_orig_mod" in module._modules and not _has_hooks(module):
        before = module.__dict__.get("forward")
    return before if hasattr(before, "_torchdynamo_orig_callable") else None


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def _hide(part: nn.Module) -> list[_Call]:
    """Leave modules to themselves that have hooks: there Dynamo looks at what we put in."""
    found = [m.__dict__.get(_ENTRY) for m in part.modules() if _has_hooks(m)]
    hidden = [call for call in found if isinstance(call, _Call)]
    for call in hidden:
        call.leave()
    return hidden


def _show(hidden: list[_Call]) -> None:
    for call in hidden:
        call.module.__dict__[_ENTRY] = call


def is_ours(entry: Any) -> bool:
    """Whether what stands before a module's call was put there by a scope."""
    return isinstance(entry, _Call)


unseen_by_dynamo(_Call.__call__, callees=False)
unseen_by_dynamo(ModuleCalls.elsewhere, callees=False)
unseen_by_dynamo(ModuleCalls.part, callees=False)
for _own in (
    *(_Call._enter, _Call.saw, _Call._again, _Call._failed, _Call._lent, _hide, _show),
    ModuleCalls._way_into,
):
    unseen_by_dynamo(_own, callees=True)
