"""ForwardReader: module outputs of the forward pass of a step, and the gradients at them."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.utils.hooks import RemovableHandle

from gradscope.layers import BOUNDS, is_normalisation
from gradscope.nested import tensors_in
from gradscope.recording import reductions
from gradscope.recording.buffer import UNSEEN, StatisticsBuffer
from gradscope.recording.calls import ModuleCalls
from gradscope.recording.guard import Guard
from gradscope.recording.kernels import Reader
from gradscope.recording.loss_side import LossReader
from gradscope.recording.meters import Meters
from gradscope.recording.network import Call, read_structure
from gradscope.recording.variation import Variation, is_worth_it
from gradscope.trace.structure import Structure
from gradscope.trace.table import TIME, RecordedTensor
from gradscope.trace.vocabulary import Kind

MAX_CALLS = 256
"""Calls of one module within one step that are recorded; a longer loop is cut off there."""

MAX_OUTPUTS = 64
"""Tensors of one call that are recorded; a list that grows from step to step is cut off there."""

_in_transform = torch._C._are_functorch_transforms_active
_backward_pass = torch._C._current_graph_task_id  # DDP asks the same way whether one is running

_TRACERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)

_FUSED = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
"""What is known to leave its input alone."""

_KINDS: tuple[Kind, Kind] = ("activation", "activation_grad")


@dataclass(slots=True)
class _Output:
    """What is known of one output of one call of a module, the same in every step."""

    column: int
    device: torch.device
    read: Reader
    also: tuple[Reader, ...]
    """What else is taken of it: its variation; of activations, dead and saturated units."""
    read_gradient: Reader
    varies: bool
    """Whether its variation is taken."""


@dataclass(slots=True)
class _Module:
    """One module of the network, and how often it ran in this step."""

    name: str
    calls: int = 0
    recomputed: int = 0
    """Calls within the backward pass, by activation checkpointing."""
    outputs: dict[int, _Output] = field(default_factory=dict)
    """`_place` of a tensor -> output."""


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
        self.gradients: set[int] = set()
        """Columns of gradients with respect to outputs, which carry the loss scale."""
        self.structure: Structure | None = None
        self.truncated: set[str] = set()
        """Modules called more often than `MAX_CALLS` in a step."""
        self.cut: set[str] = set()
        """Modules that gave more than `MAX_OUTPUTS` tensors in a call."""
        self.calls = ModuleCalls(self, guard)
        """Tells this reader of the calls; to be attached to the network's modules."""
        self._model = weakref.ref(model)
        self._modules = {id(m): _Module(name) for name, m in nn.Module.named_modules(model)}
        self._buffer = buffer
        self._meters = meters
        self._guard = guard
        self._loss = loss
        self._variation = Variation(buffer)
        self._norms_only = norms_only
        self._before_backward = before_backward
        self._after_backward = after_backward
        self._on_another_pass = on_another_pass
        self._on_first_pass = on_first_pass
        self.compiled = on_compiled
        """To be called when a module is called from within compiled code."""
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, str, int]] = {}
        self._calls: list[Call] = []
        self._roots: list[Any] = []
        """Graph nodes of what the network returned, while the structure is to be read."""
        self._sinks: list[Any] = []
        """Those of them that got a gradient."""
        self._key = object()
        """Stands for this reader among the hooks of a tensor that it took."""
        self._hooked: list[OrderedDict[object, Reader]] = []
        """Hooks of the tensors that were taken in this step."""
        self.lent: list[Tensor] = []
        """Inputs of recurrent layers that were lent, until the structure is read."""
        self._handles: list[RemovableHandle] = []
        """Of the hooks that are not among these."""
        self._leaves: list[Any] = []
        """Graph nodes of leaves with such hooks."""
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
        self._forget_graph()
        self.leave()

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
        for hooks in self._hooked:
            hooks.pop(self._key, None)
        self._hooked.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaves.clear()

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
        return not self._finished and torch.is_grad_enabled() and not _only_traced()

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take what one call of one module gave."""
        known = self._modules[id(module)]
        self._any = True
        if _in_transform():  # tensors within vmap and its kin have no numbers of their own
            return
        if _backward_pass() != -1:
            if not self._backward_over:
                self._saw_again(known, output)
        elif not self._finished and not self._take_again(known, module, output):
            self._take(known, module, args, output)
            if self.structure is None:
                self._on_first_pass(module, args, output)

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
            take = partial(self._root_gradient, len(self._roots) - 1)
            self._hook(root, self._guard.wrap("at the gradient of the output", take))

    def again(self, module: nn.Module, output: Any) -> None:
        """A further pass of the step has ended: its outputs are not taken, its backward is."""
        is_root = not self._modules[id(module)].name
        if not is_root or not self._finished or _backward_pass() != -1 or _only_traced():
            return
        for root in floating_in(output):
            if root.requires_grad:
                take = partial(self._root_gradient, -1)
                self._hook(root, self._guard.wrap("at the gradient of the output", take))

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

    def _take(self, known: _Module, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
                if self.structure is not None and self._key in (tensor._backward_hooks or ()):
                    continue  # taken as in an earlier step
                made = (weakref.ref(tensor), tensor._version, known.name, call)
                self._seen[id(tensor)] = made
                place = _place(call, index)
                seen = known.outputs.get(place)
                if seen is None or seen.device != tensor.device:
                    seen = self._new_output(known.name, module, call, index, tensor)
                    known.outputs[place] = seen
                self._measure(seen, tensor)
            if self.structure is None:
                source = self._source(module, args)
                node = tensor.grad_fn
                self._calls.append(Call(known.name, call, index, node, made[2], made[3], source))
        if isinstance(module, nn.RNNBase):
            self._take_time(known.name, module, args)

    def _take_again(self, known: _Module, module: nn.Module, output: Any) -> bool:
        """Take a call that gave one plain tensor, if all is as in an earlier step.

        That is what most calls come to, at half the cost of the general case.
        """
        if self.structure is None or type(output) is not Tensor or isinstance(module, nn.RNNBase):
            return False
        node, hooks = output.grad_fn, output._backward_hooks
        if hooks is None:
            seen = known.outputs.get(known.calls)
            if node is None or seen is None or seen.device != output.device:
                return False
            seen.read(output)
            for read in seen.also:
                read(output)
            self._register(output, node, seen.read_gradient)
            self._last = output
        elif self._key not in hooks:  # a user's; ours where a module within this one returned it
            return False
        known.calls += 1
        return True

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inputs for a fused recurrent layer that take a gradient, so that time can be seen.

        The tensor handed on is a new one on the same memory: no number changes, and the caller's
        own tensor stays without a gradient. The output must need one anyway.
        """
        trained = any(p.requires_grad for p in module.parameters())
        if not trained or not args or type(module).forward not in _FUSED or self._finished:
            return args
        sequence = args[0]
        fit = isinstance(sequence, Tensor) and sequence.is_floating_point()
        if not fit or sequence.requires_grad or not torch.is_grad_enabled():
            return args
        lent = sequence.detach().requires_grad_()
        if self.structure is None:
            self.lent.append(lent)
        return (lent, *args[1:])

    def _take_time(self, name: str, module: nn.RNNBase, args: tuple[Any, ...]) -> None:
        """The flow through time of a fused recurrent layer shows at its input, step by step."""
        sequence = args[0] if args else None
        if not isinstance(sequence, Tensor) or not sequence.requires_grad or sequence.dim() != 3:
            return
        time = 1 if module.batch_first else 0
        length = sequence.shape[time]
        stride = -(-length // MAX_CALLS)
        shape = tuple(n for d, n in enumerate(sequence.shape) if d != time)
        position = self._position() - 1
        columns = [
            self._buffer.column(
                RecordedTensor("activation_grad", name, "", position, t, TIME, shape)
            )
            for t in range(0, length, stride)
        ]
        self.gradients.update(columns)

        def take(grad: Tensor) -> None:
            others = [d for d in range(3) if d != time]
            norms = torch.linalg.vector_norm(grad.detach(), dim=others, dtype=torch.float32)
            self._buffer.put(grad.device, "norm", columns, norms[::stride])
            for column in columns:
                self._buffer.numel[column] = grad.numel() // length

        self._hook(sequence, self._guard.wrap(f"at the gradient in time of '{name}'", take))

    def _source(self, module: nn.Module, args: tuple[Any, ...]) -> str:
        """For a normalisation: the module that made the very tensor it was given."""
        if not (is_normalisation(module) and args and isinstance(args[0], Tensor)):
            return ""
        made = self._seen.get(id(args[0]))
        return made[2] if made is not None and made[0]() is args[0] else ""

    def _measure(self, output: _Output, tensor: Tensor) -> None:
        output.read(tensor)
        for read in output.also:
            read(tensor)
        if tensor.requires_grad:
            self._last = tensor
            self._await_gradient(tensor, output.read_gradient)

    def _await_gradient(self, tensor: Tensor, read: Reader) -> None:
        """Have the gradient of the tensor as it is now read, before in-place changes."""
        node = tensor.grad_fn
        if node is None or tensor._backward_hooks is not None or type(tensor) is not Tensor:
            self._hook(tensor, read)
        else:
            self._register(tensor, node, read)

    def _register(self, tensor: Tensor, node: Any, read: Reader) -> None:
        """What register_hook does at half its cost: there is no handle to remove it with."""
        tensor._backward_hooks = hooks = OrderedDict()
        hooks[self._key] = read  # several times faster than as an argument
        node._register_hook_dict(tensor)
        self._hooked.append(hooks)

    def _hook(self, tensor: Tensor, read: Reader) -> None:
        """The same for any tensor; at one that stays, nothing may."""
        if tensor.grad_fn is not None:
            handle = tensor.register_hook(read)  # type: ignore[no-untyped-call]  # torch's stub
        else:  # a parameter, or an input of the user's
            node = torch.autograd.graph.get_gradient_edge(tensor).node
            handle = node.register_prehook(lambda gradients: read(gradients[0]))
            self._leaves.append(node)  # else it and the hook may be gone before a graph has it
        self._handles.append(handle)

    def _new_output(
        self, name: str, module: nn.Module, call: int, index: int, tensor: Tensor
    ) -> _Output:
        shape, position = tuple(tensor.shape), self._position()
        dtype = str(tensor.dtype).removeprefix("torch.")
        column, gradient = (
            self._buffer.column(RecordedTensor(kind, name, "", position, call, index, shape, dtype))
            for kind in _KINDS
        )
        self.gradients.add(gradient)
        meter = self._meters.of(tensor.device)
        also, varies = [], not self._norms_only and is_worth_it(module)
        if not self._norms_only:
            if varies:
                also.append(self._variation.reader(column))
            if tensor.dim() > 1 and type(module).__module__ == "torch.nn.modules.activation":
                dim = 2 if tensor.dim() == 3 else 1  # (batch, time, features), else channels
                also.append(meter.units_reader(column, dim))
            if type(module) in BOUNDS:
                also.append(self._saturation_reader(column, *BOUNDS[type(module)]))
        reader = meter.output_reader(column, norm_only=self._norms_only)
        # Half precision alone is narrow enough for gradients to underflow: there zeros are counted.
        narrow = tensor.dtype is torch.float16 and not self._norms_only
        read_gradient = self._guard.wrap(
            f"at the gradient of the output of '{name}'",
            meter.gradient_reader(gradient, whole=narrow),
        )
        return _Output(column, tensor.device, reader, tuple(also), read_gradient, varies)

    def _saturation_reader(self, column: int, low: float, high: float) -> Reader:
        buffer = self._buffer

        def read(tensor: Tensor) -> None:
            if not reductions.is_readable(tensor):
                return
            share = buffer.cell(tensor.device, column, "saturated")
            share.copy_(reductions.saturated_share(tensor, low, high))

        return read

    def _position(self) -> int:
        """Place in execution order of the output that is being taken."""
        if self.structure is None:
            return len(self._calls)
        return sum(known.calls for known in self._modules.values()) - 1

    def _saw_again(self, known: _Module, output: Any) -> None:
        call = known.recomputed
        known.recomputed += 1
        for index, tensor in enumerate(floating_in(output)):
            seen = known.outputs.get(_place(call, index))
            if tensor.requires_grad and seen is not None:
                self._await_gradient(tensor, seen.read_gradient)

    def _take_variation(self, roots: list[Tensor]) -> None:
        """Once: that of the weights, and from now on that of what the network returns."""
        made = {self._seen[id(root)][2:]: root for root in roots if id(root) in self._seen}
        for known in self._modules.values():
            for place, seen in known.outputs.items():
                root = made.get((known.name, place & _CALLS))
                if root is not None and not seen.varies:
                    read = self._variation.reader(seen.column)
                    read(root)
                    seen.also, seen.varies = (*seen.also, read), True
        model = self._model()
        if model is not None:
            self._variation.of_weights(model)

    def _root_gradient(self, index: int, grad: Tensor) -> None:
        self._finished = True
        if self._roots and self._roots[index] is not None:
            self._sinks.append(self._roots[index])
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
        self.structure = read_structure(model, self._calls, sinks)
        self._forget_graph()

    def _forget_graph(self) -> None:
        self._calls.clear()
        self.lent.clear()
        self._roots.clear()
        self._sinks.clear()


_CALLS = 2**32 - 1
"""What of a place is the call."""


def _place(call: int, index: int) -> int:
    """Of a tensor among those of a module: the call itself where a call gives one tensor."""
    return index << 32 | call


def floating_in(output: Any) -> Sequence[Tensor]:
    """The tensors in what a module returned that can carry a gradient, whatever the nesting."""
    return [
        t
        for t in tensors_in(output)
        if (t.is_floating_point() or t.is_complex()) and reductions.is_readable(t)
    ]


def _only_traced() -> bool:
    """Whether what runs is being written down, by torch.jit, torch.fx or torch.export."""
    if torch._C._get_tracing_state() is not None or is_fx_symbolic_tracing():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
