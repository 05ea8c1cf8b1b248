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

from gradscope import statistics
from gradscope.buffer import StatisticsBuffer
from gradscope.meters import Meters, Reader
from gradscope.state import tensors_in
from gradscope.statistics import Kind
from gradscope.structure import Call, Structure, is_normalisation, read_structure
from gradscope.trace import TIME, RecordedTensor

MAX_CALLS = 256
"""Calls of one module within one step that are recorded; a longer loop is cut off there."""

_BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (-1.0, 1.0),
    nn.Sigmoid: (0.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU6: (0.0, 6.0),
    nn.Hardsigmoid: (0.0, 1.0),
}
"""Range of the activations that can saturate on both sides."""

_in_inference_mode = torch.is_inference_mode_enabled
_in_transform = torch._C._are_functorch_transforms_active
_backward_pass = torch._C._current_graph_task_id  # DDP asks the same way whether one is running

_KINDS: tuple[Kind, Kind] = ("activation", "activation_grad")


@dataclass(slots=True)
class _Output:
    """What is known of one output of one call of a module, the same in every step."""

    column: int
    gradient_column: int
    device: torch.device
    parts: int
    """Real numbers in each element: 2 where they are complex."""
    read: Reader
    read_gradient: Reader
    read_units: Reader | None
    """Only of activations."""
    bounds: tuple[float, float] | None
    numel: int = 0
    """Real numbers in the output of this step, and in the gradient with respect to it."""
    hooked: bool = False
    """Whether its gradient is awaited in this step."""


@dataclass(slots=True)
class _Module:
    """One module of the network, and how often it ran in this step."""

    name: str
    calls: int = 0
    recomputed: int = 0
    """Calls within the backward pass, by activation checkpointing."""
    outputs: dict[tuple[int, int], _Output] = field(default_factory=dict)
    """Call and index of the tensor -> output."""


class ForwardReader:
    """Module outputs of the first forward pass of a step, and the gradients at them."""

    def __init__(
        self,
        model: nn.Module,
        buffer: StatisticsBuffer,
        meters: Meters,
        *,
        norms_only: bool,
        after_backward: Callable[[], None],
        on_another_pass: Callable[[], None],
    ) -> None:
        self.numel: dict[int, int] = {}
        self.gradients: set[int] = set()
        """Columns of gradients with respect to outputs, which carry the loss scale."""
        self.structure: Structure | None = None
        self.truncated: set[str] = set()
        """Modules called more often than `MAX_CALLS` in a step."""
        self.has_fused_recurrence = any(isinstance(m, nn.RNNBase) for m in model.modules())
        """Whether the network has a layer that loops over time by itself."""
        self._model = weakref.ref(model)
        self._modules = {id(m): _Module(name) for name, m in model.named_modules()}
        self._buffer = buffer
        self._meters = meters
        self._norms_only = norms_only
        self._after_backward = after_backward
        self._on_another_pass = on_another_pass
        self._seen_gradients = bytearray()  # one mark for each column
        self._reset()

    def begin(self) -> None:
        """Forget the last step."""
        self._reset()
        self.numel = {}
        self.gradients = set()
        self._seen_gradients[:] = bytes(len(self._seen_gradients))

    def _reset(self) -> None:
        """Forget the forward pass."""
        self._finished = False  # a forward pass that follows a complete one is another one
        self._queued = False
        self._position = 0
        for known in self._modules.values():
            known.calls = known.recomputed = 0
            for output in known.outputs.values():
                output.hooked = False
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, str, int]] = {}
        self._calls: list[Call] = []
        self._sinks: list[Any] = []

    def end(self) -> None:
        """Note which gradients came; read the structure if the root never ran, only its parts."""
        self._read_structure()
        for known in self._modules.values():
            for output in known.outputs.values():
                if self._seen_gradients[output.gradient_column]:
                    self.numel[output.gradient_column] = output.numel
                    self.gradients.add(output.gradient_column)

    def truncated_notes(self) -> list[str]:
        """One line for each module that ran more often than is recorded."""
        return [
            f"'{name or '(root)'}' ran more than {MAX_CALLS} times in a step; the rest of its "
            "calls is not recorded"
            for name in sorted(self.truncated)
        ]

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take what one call of one module gave; called by the forward hook."""
        known = self._modules.get(id(module))
        if known is None or _in_inference_mode():  # nothing of it can be trained on
            return
        if _in_transform():  # tensors within vmap and its kin have no numbers of their own
            return
        if _backward_pass() != -1:
            self._saw_again(known, output)  # activation checkpointing computes it a second time
            return
        if self._finished:
            self._on_another_pass()
        if not self._finished:
            self._take(known, module, args, output)
        if not known.name:
            self._end_of_forward(output)

    def _take(self, known: _Module, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = known.calls
        known.calls += 1
        if call >= MAX_CALLS:
            self.truncated.add(known.name)
            return
        for index, tensor in enumerate(floating_in(output)):
            made = self._seen.get(id(tensor))
            if made is None or made[0]() is not tensor or made[1] != tensor._version:
                made = (weakref.ref(tensor), tensor._version, known.name, call)
                self._seen[id(tensor)] = made
                place = known.outputs.get((call, index))
                if place is None or place.device != tensor.device:
                    place = self._new_output(known.name, module, call, index, tensor)
                    known.outputs[call, index] = place
                self._measure(place, tensor)
            if self.structure is None:
                source = self._source(module, args)
                node = tensor.grad_fn
                self._calls.append(Call(known.name, call, index, node, made[2], made[3], source))
            self._position += 1
        if self.has_fused_recurrence and isinstance(module, nn.RNNBase):
            self._take_time(known.name, module, args)

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Inputs for a fused recurrent layer that take a gradient, so that time can be seen.

        The tensor handed on is a new one on the same memory: no number changes, and the caller's
        own tensor stays without a gradient.
        """
        if not isinstance(module, nn.RNNBase) or id(module) not in self._modules or not args:
            return None
        sequence = args[0]
        fit = isinstance(sequence, Tensor) and sequence.is_floating_point()
        if not fit or sequence.requires_grad or not torch.is_grad_enabled():
            return None
        return (sequence.detach().requires_grad_(), *args[1:])

    def _take_time(self, name: str, module: nn.RNNBase, args: tuple[Any, ...]) -> None:
        """The flow through time of a fused recurrent layer shows at its input, step by step."""
        sequence = args[0] if args else None
        if not isinstance(sequence, Tensor) or not sequence.requires_grad or sequence.dim() != 3:
            return
        time = 1 if module.batch_first else 0
        length = sequence.shape[time]
        stride = -(-length // MAX_CALLS)
        shape = tuple(n for d, n in enumerate(sequence.shape) if d != time)
        columns = [
            self._buffer.column(
                RecordedTensor("activation_grad", name, "", self._position - 1, t, TIME, shape)
            )
            for t in range(0, length, stride)
        ]

        def take(grad: Tensor) -> None:
            others = [d for d in range(3) if d != time]
            norms = torch.linalg.vector_norm(grad.detach(), dim=others, dtype=torch.float32)
            self._buffer.put(grad.device, "norm", columns, norms[::stride])
            numel = grad.numel() // length
            self.numel.update(dict.fromkeys(columns, numel))
            self.gradients.update(columns)

        _on_gradient(sequence, take)

    def _source(self, module: nn.Module, args: tuple[Any, ...]) -> str:
        """For a normalisation: the module that made the very tensor it was given."""
        if not (is_normalisation(module) and args and isinstance(args[0], Tensor)):
            return ""
        made = self._seen.get(id(args[0]))
        return made[2] if made is not None and made[0]() is args[0] else ""

    def _measure(self, output: _Output, tensor: Tensor) -> None:
        output.read(tensor)
        output.numel = self.numel[output.column] = tensor.numel() * output.parts
        if output.read_units is not None:
            output.read_units(tensor)
        if output.bounds is not None:
            share = self._buffer.cell(tensor.device, output.column, "saturated")
            share.copy_(statistics.saturated_share(tensor, *output.bounds))
        if tensor.requires_grad:
            _on_gradient(tensor, output.read_gradient)
            output.hooked = True

    def _new_output(
        self, name: str, module: nn.Module, call: int, index: int, tensor: Tensor
    ) -> _Output:
        shape = tuple(tensor.shape)
        column, gradient = (
            self._buffer.column(RecordedTensor(kind, name, "", self._position, call, index, shape))
            for kind in _KINDS
        )
        self._seen_gradients.extend(bytes(gradient + 1 - len(self._seen_gradients)))
        meter = self._meters.of(tensor.device)
        units, bounds = None, None
        if not self._norms_only:
            bounds = _BOUNDS.get(type(module))
            if tensor.dim() > 1 and type(module).__module__ == "torch.nn.modules.activation":
                dim = 2 if tensor.dim() == 3 else 1  # (batch, time, features), else channels
                units = meter.units_reader(column, dim)
        return _Output(
            column,
            gradient,
            tensor.device,
            2 if tensor.is_complex() else 1,
            meter.output_reader(column),
            meter.gradient_reader(gradient, self._seen_gradients),
            units,
            bounds,
        )

    def _saw_again(self, known: _Module, output: Any) -> None:
        call = known.recomputed
        known.recomputed += 1
        for index, tensor in enumerate(floating_in(output)):
            place = known.outputs.get((call, index))
            if tensor.requires_grad and place is not None and not place.hooked:
                _on_gradient(tensor, place.read_gradient)
                place.hooked = True

    def _end_of_forward(self, output: Any) -> None:
        roots = [t for t in floating_in(output) if t.requires_grad]
        if not roots:
            if not self._finished:  # a validation pass: nothing of it counts
                self.numel = {}
                self._reset()
            return
        self._finished = True
        for root in roots:
            _on_gradient(root, partial(self._root_gradient, root.grad_fn))

    def _root_gradient(self, node: Any, grad: Tensor) -> None:
        del grad
        self._sinks.append(node)
        if not self._queued:
            self._queued = True
            # A callback queued from a callback runs after those of DDP and FSDP, which finish
            # the gradients in callbacks of their own.
            queue = torch.autograd.Variable._execution_engine.queue_callback  # as DDP does
            queue(lambda: queue(self._end_of_backward))

    def _end_of_backward(self) -> None:
        self._queued = False
        self._read_structure()
        self._after_backward()

    def _read_structure(self) -> None:
        model = self._model()
        if self.structure is not None or model is None or not self._calls:
            return
        sinks = self._sinks or [c.node for c in reversed(self._calls) if c.node is not None]
        self.structure = read_structure(model, self._calls, sinks)
        self._calls, self._sinks = [], []


def _on_gradient(tensor: Tensor, read: Reader) -> None:
    """Have the gradient of the tensor as it is now read, before in-place changes."""
    node = tensor.grad_fn
    if node is None or tensor._backward_hooks is not None or type(tensor) is not Tensor:
        tensor.register_hook(read)  # type: ignore[no-untyped-call]  # torch's stub
    else:  # what register_hook does at half its cost: there is no handle to remove it with
        tensor._backward_hooks = OrderedDict(gradscope=read)
        node._register_hook_dict(tensor)


def floating_in(output: Any) -> Sequence[Tensor]:
    """The tensors in what a module returned that can carry a gradient, whatever the nesting."""
    if type(output) is Tensor and output.dtype is torch.float32:  # what most modules return
        return (output,)
    return [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
