"""ForwardReader: module outputs of the forward pass of a step, and the gradients at them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.layers import is_normalisation
from gradscope.nested import tensors_in
from gradscope.recording import reductions
from gradscope.recording.buffer import UNSEEN, StatisticsBuffer
from gradscope.recording.calls import ModuleCalls
from gradscope.recording.compiled import CompiledParts, Made
from gradscope.recording.eligible import MAX_CALLS, MAX_OUTPUTS, floating_in, only_traced
from gradscope.recording.gradient_hooks import GradientHooks
from gradscope.recording.guard import Guard
from gradscope.recording.known import CALLS, KnownModule, place
from gradscope.recording.loss_side import LossReader
from gradscope.recording.meters import Meters
from gradscope.recording.network import Call, read_structure
from gradscope.recording.output_readers import Output, OutputReaders
from gradscope.recording.through_time import ThroughTime
from gradscope.recording.variation import Variation
from gradscope.trace.structure import Structure

_in_transform = torch._C._are_functorch_transforms_active
_backward_pass = torch._C._current_graph_task_id  # DDP asks the same way whether one is running


class ForwardReader:
    """Module outputs of the first forward pass of a step, and the gradients at them."""

    def __init__(
        self,
        model: nn.Module,
        buffer: StatisticsBuffer,
        meters: Meters,
        guard: Guard,
        loss: LossReader,
        *,
        norms_only: bool,
        before_backward: Callable[[], None],
        after_backward: Callable[[], None],
        on_another_pass: Callable[[], None],
        on_compiled: Callable[[], None],
        on_first_pass: Callable[[nn.Module, tuple[Any, ...], Any], None],
    ) -> None:
        self.structure: Structure | None = None
        self.truncated: set[str] = set()
        """Modules called more often than `MAX_CALLS` in a step."""
        self.cut: set[str] = set()
        """Modules that gave more than `MAX_OUTPUTS` tensors in a call."""
        self.calls = ModuleCalls(self, guard)
        """Tells this reader of the calls; to be attached to the network's modules."""
        self._model = weakref.ref(model)
        self._modules = {id(m): KnownModule(name) for name, m in nn.Module.named_modules(model)}
        self._buffer = buffer
        self._meters = meters
        self._guard = guard
        self._loss = loss
        self._variation = Variation(buffer)
        self._readers = OutputReaders(buffer, meters, guard, self._variation, norms_only=norms_only)
        self.gradients = self._readers.gradients
        """Columns of gradients with respect to outputs, which carry the loss scale."""
        self._hooks = GradientHooks()
        self._time = ThroughTime(buffer, guard, self._hooks, self.gradients)
        self._norms_only = norms_only
        self._before_backward = before_backward
        self._after_backward = after_backward
        self._on_another_pass = on_another_pass
        self._on_first_pass = on_first_pass
        self.compiled = on_compiled
        """To be called when a module is called from within compiled code."""
        self._seen: dict[int, Made] = {}
        self._calls: list[Call] = []
        self.parts = CompiledParts(
            modules=self._modules,
            calls=self._calls,
            seen=self._seen,
            readers=self._readers,
            hooks=self._hooks,
            guard=guard,
            truncated=self.truncated,
            position=self._position,
            on_fault=on_compiled,
        )
        """What of the network is compiled."""
        self._roots: list[Any] = []
        """Graph nodes of what the network returned, while the structure is to be read."""
        self._ends: list[Any] = []
        """The same as the structure names them, which knows what is inside compiled ones."""
        self._sinks: list[Any] = []
        """Those of them that got a gradient."""
        self.lent: list[Tensor] = []
        """Inputs of recurrent layers that were lent, until the structure is read."""
        self._finished = False  # a forward pass that follows a complete one is another one
        self._queued = False
        self._backward_over = False
        self._any = False
        """Whether any call was seen in this step."""
        self._last: Tensor | None = None
        """The last output of this forward pass that takes a gradient."""

    def begin(self) -> None:
        """Forget the last forward pass."""
        self._finished = self._queued = self._backward_over = self._any = False
        self._last = None
        for known in self._modules.values():
            known.calls = known.recomputed = 0
        self._seen.clear()
        self.parts.forget()
        self._forget_graph()
        self._hooks.leave()

    def end(self) -> bool:
        """Read the structure if the root never ran, only its parts.

        Returns:
            Whether any call of a module was seen in this step.
        """
        self._read_structure()
        self._variation.end()
        return self._any

    def leave(self) -> None:
        """Take the hooks from the tensors of this step, which the user may hold on to."""
        self._hooks.leave()

    def truncated_notes(self) -> list[str]:
        """One line for each module that ran more often, or gave more, than is recorded."""
        often = [
            f"'{name or '(root)'}' ran more than {MAX_CALLS} times in a step; the rest of its "
            "calls is not recorded"
            for name in sorted(self.truncated)
        ]
        much = [
            f"'{name or '(root)'}' gave more than {MAX_OUTPUTS} tensors in a call; the rest of "
            "them is not recorded"
            for name in sorted(self.cut)
        ]
        return often + much

    def enter(self) -> bool:
        """A call from outside begins; whether it and what it calls are to be seen."""
        if _backward_pass() != -1:
            return not self._backward_over  # activation checkpointing computes it a second time
        if self._finished:
            self._on_another_pass()
        return not self._finished and torch.is_grad_enabled() and not only_traced()

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take what one call of one module gave."""
        known = self._modules[id(module)]
        self._any = True
        if _in_transform():  # tensors within vmap and its kin have no numbers of their own
            return
        if _backward_pass() != -1:
            if not self._backward_over:
                self._saw_again(known, output)
        elif not self._finished:
            self._take(known, module, args, output)
            if self.structure is None:
                self._on_first_pass(module, args, output)

    def saw_again(self, module: nn.Module, output: Tensor) -> bool:
        """Take a call that gave one plain tensor, if all is as in an earlier step.

        That is what most calls come to, at half the cost of the general case.

        Returns:
            Whether it was taken; else it is `saw` that takes it.
        """
        if self.structure is None or self._finished or isinstance(module, nn.RNNBase):
            return False
        if _in_transform() or _backward_pass() != -1:
            return False
        known = self._modules[id(module)]
        node, hooks = output.grad_fn, output._backward_hooks
        if hooks is None:
            seen = known.outputs.get(known.calls)
            if node is None or seen is None or seen.device != output.device:
                return False
            seen.read(output)
            for read in seen.also:
                read(output)
            self._hooks.register(output, node, seen.read_gradient)
            self._last = output
        elif self._hooks.key not in hooks:
            return False  # a user's; ours where a module within this one returned it
        known.calls += 1
        self._any = True
        return True

    def left(self, module: nn.Module, output: Any) -> None:
        """A call from outside has ended: of the network itself, or of a part of it."""
        is_root = not self._modules[id(module)].name
        if _backward_pass() != -1 or _in_transform():
            return
        last, self._last = self._last, None
        tensors = tensors_in(output)
        roots = [t for t in tensors if t.requires_grad and not t.is_meta]
        if not tensors and last is not None:  # they are in something that cannot be looked into
            roots = [last]
        if is_root and not roots and not self._finished:
            self._forget_pass()  # of validation
        if not roots or self._finished:
            return
        self._finished = is_root
        self._loss.outputs([root for root in roots if reductions.is_readable(root)])
        if self.structure is None and not self._norms_only:
            self._take_variation(roots)
        for root in roots:
            if self.structure is None:
                self._roots.append(root.grad_fn)  # a hook that held it would keep the graph alive
                self._ends.append(self.parts.node_of(root))
            take = partial(self._root_gradient, len(self._roots) - 1)
            self._hooks.at(root, self._guard.wrap("at the gradient of the output", take))

    def again(self, module: nn.Module, output: Any) -> None:
        """A further pass of the step has ended: its outputs are not taken, its backward is."""
        is_root = not self._modules[id(module)].name
        if not is_root or not self._finished or _backward_pass() != -1 or only_traced():
            return
        for root in floating_in(output):
            if root.requires_grad:
                take = partial(self._root_gradient, -1)
                self._hooks.at(root, self._guard.wrap("at the gradient of the output", take))

    def failed(self) -> None:
        """Nothing of this forward pass counts."""
        if _backward_pass() != -1:  # checkpointing stops as soon as it has what it needs
            return
        self._forget_pass()

    def _forget_pass(self) -> None:
        for known in self._modules.values():
            for seen in known.outputs.values():
                self._buffer.numel[seen.column] = UNSEEN
        self.begin()
        self._any = True

    def _take(
        self, known: KnownModule, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        call = known.calls
        known.calls += 1
        if call >= MAX_CALLS:
            self.truncated.add(known.name)
            return
        tensors = floating_in(output)
        if len(tensors) > MAX_OUTPUTS:
            self.cut.add(known.name)
        for index, tensor in enumerate(tensors[:MAX_OUTPUTS]):
            if tensor.is_inference():  # made in the inference mode: no version, no gradient
                continue
            made = self._seen.get(id(tensor))
            if made is None or made[0]() is not tensor or made[1] != tensor._version:
                if self.structure is not None and self._hooks.key in (tensor._backward_hooks or ()):
                    continue  # taken as in an earlier step
                made = (weakref.ref(tensor), tensor._version, known.name, call)
                self._seen[id(tensor)] = made
                at = place(call, index)
                seen = known.outputs.get(at)
                if seen is None or seen.device != tensor.device:
                    position = self._position()
                    seen = self._readers.of(
                        known.name, module, tensor, call=call, index=index, position=position
                    )
                    known.outputs[at] = seen
                self._measure(seen, tensor)
            if self.structure is None:
                source = self._source(module, args)
                node = self.parts.node_of(tensor)
                self._calls.append(Call(known.name, call, index, node, made[2], made[3], source))
        if isinstance(module, nn.RNNBase):
            self._time.take(known.name, module, args, self._position() - 1)

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a recurrent layer is to be called with, so that the flow through time shows."""
        given = args if self._finished else self._time.lend(module, args)
        if given is not args and self.structure is None:
            self.lent.append(given[0])
        return given

    def _source(self, module: nn.Module, args: tuple[Any, ...]) -> str:
        """For a normalisation: the module that made the very tensor it was given."""
        if not (is_normalisation(module) and args and isinstance(args[0], Tensor)):
            return ""
        made = self._seen.get(id(args[0]))
        return made[2] if made is not None and made[0]() is args[0] else ""

    def _measure(self, output: Output, tensor: Tensor) -> None:
        output.read(tensor)
        for read in output.also:
            read(tensor)
        if tensor.requires_grad:
            self._last = tensor
            self._hooks.wait(tensor, output.read_gradient)

    def _position(self) -> int:
        """Place in execution order of the output that is being taken."""
        if self.structure is None:
            return len(self._calls)
        return sum(known.calls for known in self._modules.values()) - 1

    def _saw_again(self, known: KnownModule, output: Any) -> None:
        call = known.recomputed
        known.recomputed += 1
        for index, tensor in enumerate(floating_in(output)):
            seen = known.outputs.get(place(call, index))
            if tensor.requires_grad and seen is not None:
                self._hooks.wait(tensor, seen.read_gradient)

    def _take_variation(self, roots: list[Tensor]) -> None:
        """Once: that of the weights, and from now on that of what the network returns."""
        made = {self._seen[id(root)][2:]: root for root in roots if id(root) in self._seen}
        for known in self._modules.values():
            for at, seen in known.outputs.items():
                root = made.get((known.name, at & CALLS))
                if root is None:
                    continue
                self._variation.returned.add(seen.column)
                if not seen.varies:
                    read = self._variation.reader(seen.column)
                    read(root)
                    seen.also, seen.varies = (*seen.also, read), True
        model = self._model()
        if model is not None:
            self._variation.of_weights(model)

    def _root_gradient(self, index: int, grad: Tensor | None) -> None:
        if grad is None:  # one of several outputs of an operation, which another one brought here
            return
        self._finished = True
        if self._ends and self._ends[index] is not None:
            self._sinks.append(self._ends[index])
        if not self._queued and _backward_pass() != -1:  # in compiled autograd there is none
            self._queued = True
            self._before_backward()
            self._loss.gradient(grad, self._roots, lambda: (call.node for call in self._calls))
            # A callback queued from a callback runs after those of DDP and FSDP, which finish
            # the gradients in callbacks of their own.
            queue = torch.autograd.Variable._execution_engine.queue_callback  # as DDP does
            end = self._guard.wrap("at the end of the backward pass", self._end_of_backward)
            queue(self._guard.wrap("at the end of the backward pass", partial(queue, end)))

    def _end_of_backward(self) -> None:
        self._queued = False
        self._backward_over = True
        self._read_structure()
        self._after_backward()

    def _read_structure(self) -> None:
        model = self._model()
        if self.structure is not None or model is None or not self._calls:
            return
        sinks = self._sinks or [c.node for c in reversed(self._calls) if c.node is not None]
        self.structure = read_structure(model, self._calls, sinks, self.parts.inner)
        self._forget_graph()

    def _forget_graph(self) -> None:
        self._calls.clear()
        self.lent.clear()
        self._roots.clear()
        self._ends.clear()
        self._sinks.clear()
