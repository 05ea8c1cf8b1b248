"""What the recorder reads in one step: parameter gradients, module outputs and their gradients."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope import statistics
from gradscope.buffer import RAW, StatisticsBuffer
from gradscope.state import tensors_in
from gradscope.structure import Call, Structure, is_normalisation, read_structure
from gradscope.trace import TIME, RecordedTensor

MAX_CALLS = 256
"""Calls of one module within one step that are recorded; a longer loop is cut off there."""

_NORM, _MINIMUM, _MAXIMUM, _NONFINITE = (
    RAW.index(name) for name in ("norm", "minimum", "maximum", "nonfinite")
)

_SQUARES_LOW, _SQUARES_HIGH = 1e-15, 1e18
"""Norms between these have squares well inside the range of float32."""

_BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (-1.0, 1.0),
    nn.Sigmoid: (0.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU6: (0.0, 6.0),
    nn.Hardsigmoid: (0.0, 1.0),
}
"""Range of the activations that can saturate on both sides."""


class ParameterReader:
    """Gradients, norms and updates of all parameters, batched per device."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], buffer: StatisticsBuffer
    ) -> None:
        self.numel: dict[int, int] = {}
        """Column -> number of elements, of the parameters measured in this step."""
        self.ever: set[str] = set()
        """Names of the parameters that got a gradient in some recorded step."""
        self._buffer = buffer
        self._optimizers = optimizers
        self._parameters = dict(model.named_parameters())
        self._columns: dict[str, int] = {}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                self._column(name, parameter)
        self._versions: dict[str, tuple[int, int]] = {}
        self._before: dict[str, tuple[Tensor, Tensor, float]] = {}
        self._sharded: dict[int, Any] = {}

    def begin(self) -> None:
        """Forget the last step."""
        self.numel = {}
        self._versions = {}
        self._before = {}
        self._sharded = {}

    def after_backward(self, scale: Tensor | None) -> None:
        """Take all statistics before anyone clips, and before an optimizer that may not step.

        Args:
            scale: factor that the gradients carry from loss scaling, 0-d, or None.
        """
        grads = self._grads(None)
        self._summarise(grads, scale)
        for device, names in _by_device(grads).items():
            columns = [self._columns[n] for n in names]
            self._buffer.put(
                device, "unclipped", columns, self._buffer.get(device, "norm", columns)
            )
        self._versions = {n: (id(g), g._version) for n, g in grads.items()}

    def measure(self, optimizer: Optimizer | None, scale: Tensor | None = None) -> None:
        """Take the statistics of what has changed since the backward pass: nothing, unless clipped.

        Args:
            optimizer: leave out the parameters that only other optimizers step; None: all.
            scale: factor that the gradients still carry from loss scaling, 0-d, or None.
        """
        grads = self._grads(optimizer)
        self._summarise(
            {n: g for n, g in grads.items() if self._versions.get(n) != (id(g), g._version)}, scale
        )

    def _summarise(self, grads: dict[str, Tensor], scale: Tensor | None) -> None:
        for device, names in _by_device(grads).items():
            columns = [self._columns[n] for n in names]
            vectors = [statistics.elements(grads[n]) for n in names]
            if device.type == "cuda":  # batched: one kernel for many tensors
                largest = statistics.largest(vectors)
                self._buffer.put(device, "norm", columns, statistics.norms(vectors))
                self._buffer.put(device, "maximum", columns, largest)
                self._buffer.put(device, "minimum", columns, -largest)
            else:  # one after the other: the second pass over a tensor finds it in the cache
                for column, vector in zip(columns, vectors, strict=True):
                    cells = self._buffer.cells(device, column)
                    _write_summary(cells, vector)
                    _mend(cells, vector)
            for name in ("norm", "minimum", "maximum") if scale is not None else ():
                found = self._buffer.get(device, name, columns)
                self._buffer.put(device, name, columns, _unscaled(found, scale))
            self._shares(device, columns, vectors, [grads[n] for n in names])
        for name, grad in grads.items():
            self.numel[self._columns[name]] = self._parameters[name].numel()
            if hasattr(grad, "device_mesh"):
                self._sharded[self._columns[name]] = grad
        self.ever |= grads.keys()

    def remember_weights(self, optimizer: Optimizer) -> None:
        """Before the step: norms of the weights, and a sample of each to compare with after it."""
        grads = self._grads(optimizer)
        for device, names in _by_device(grads).items():
            columns = [self._columns[n] for n in names]
            vectors = [statistics.elements(self._parameters[n]) for n in names]
            self._buffer.put(device, "weight_norm", columns, statistics.norms(vectors))
            for name, vector in zip(names, vectors, strict=True):
                view = statistics.sample(vector, statistics.UPDATE_LIMIT)
                share = (vector.numel() / max(view.numel(), 1)) ** 0.5
                self._before[name] = (view.clone(), view, share)

    def measure_update(self, optimizer: Optimizer) -> None:
        """After the step: how far it moved each parameter, from the sample taken before it."""
        stepped = _stepped_by(optimizer)
        moved = {n: self._parameters[n] for n in self._before if id(self._parameters[n]) in stepped}
        for device, names in _by_device(moved).items():
            before, after, shares = zip(*(self._before[n] for n in names), strict=True)
            change = statistics.norms(list(torch._foreach_sub(after, before)))
            columns = [self._columns[n] for n in names]
            self._buffer.put(
                device, "update", columns, change * self._buffer.constant(device, shares)
            )

    def end(self) -> None:
        """Combine what the ranks of a sharded model measured, in one collective."""
        if self._sharded:
            _reduce_shards(self._sharded, self.numel, self._buffer)

    def _column(self, name: str, parameter: Tensor) -> int:
        if name not in self._columns:
            module, _, last = name.rpartition(".")
            tensor = RecordedTensor("weight", module, last, -1, shape=tuple(parameter.shape))
            self._columns[name] = self._buffer.column(tensor, parameter.device)
        return self._columns[name]

    def _grads(self, optimizer: Optimizer | None) -> dict[str, Tensor]:
        """Name -> gradient of what an optimizer steps, and of what no optimizer does."""
        others: set[int] = set()
        if optimizer is not None and len(self._optimizers) > 1:
            mine = _stepped_by(optimizer)
            for each in self._optimizers:
                others |= _stepped_by(each) - mine
        grads = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and id(parameter) not in others:
                self._column(name, parameter)
                grads[name] = parameter.grad
        return grads

    def _shares(
        self,
        device: torch.device,
        columns: list[int],
        vectors: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        samples = [statistics.sample(v) for v in vectors]
        zero = statistics.zero_shares(samples)
        if any(g.is_sparse for g in grads):  # what is not stored is zero
            stored = [
                v.numel() / max(g.numel(), 1) if g.is_sparse else 1.0
                for v, g in zip(vectors, grads, strict=True)
            ]
            zero = 1 - torch.tensor(stored, device=device) * (1 - zero)
        self._buffer.put(device, "zero", columns, zero)
        if device.type == "cuda":
            self._buffer.put(device, "nonfinite", columns, statistics.nonfinite_shares(samples))
        if self._buffer.histograms:
            for column, taken in zip(columns, samples, strict=True):
                self._buffer.put_histogram(column, statistics.log2_histogram(taken))


class ForwardReader:
    """Module outputs of the first forward pass of a step, and the gradients at them."""

    def __init__(
        self, model: nn.Module, buffer: StatisticsBuffer, after_backward: Callable[[], None]
    ) -> None:
        self.numel: dict[int, int] = {}
        self.gradients: set[int] = set()
        """Columns of gradients with respect to outputs, which carry the loss scale."""
        self.structure: Structure | None = None
        self.truncated: set[str] = set()
        """Modules called more often than `MAX_CALLS` in a step."""
        self._model = weakref.ref(model)
        self._names = {id(m): name for name, m in model.named_modules()}
        self._buffer = buffer
        self._after_backward = after_backward
        self._columns: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._ever_active: dict[tuple[str, int, int], Tensor] = {}
        self._all_active: set[tuple[str, int, int]] = set()
        self._reset()

    @property
    def finished(self) -> bool:
        """Whether the network's forward pass is complete, so that what follows is another one."""
        return self._finished

    def begin(self) -> None:
        """Forget the last step."""
        self._reset()
        self.numel = {}
        self.gradients = set()

    def _reset(self) -> None:
        """Forget the forward pass."""
        self._finished = False
        self._queued = False
        self._position = 0
        self._counts: dict[str, int] = {}
        self._recounts: dict[str, int] = {}
        self._hooked: set[tuple[str, int, int]] = set()
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, str, int]] = {}
        self._calls: list[Call] = []
        self._sinks: list[Any] = []
        self._signs: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
        self._samples: dict[torch.device, tuple[list[Tensor], list[int]]] = {}

    def end(self) -> None:
        """Count the samples; read the structure if the root never ran, only modules inside it."""
        self._read_structure()
        for device, (signs, columns) in self._signs.items():
            self._buffer.put(device, "zero", columns, statistics.zero_shares(signs))
        for device, (samples, columns) in self._samples.items():
            nonfinite = statistics.nonfinite_shares(samples)
            self._buffer.put(device, "nonfinite", columns, nonfinite)

    def truncated_notes(self) -> list[str]:
        """One line for each module that ran more often than is recorded."""
        return [
            f"'{name or '(root)'}' ran more than {MAX_CALLS} times in a step; the rest of its "
            "calls is not recorded"
            for name in sorted(self.truncated)
        ]

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take what one call of one module gave; called by the forward hook."""
        name = self._names.get(id(module))
        if name is None or torch.is_inference_mode_enabled():  # nothing of it can be trained on
            return
        if torch._C._current_graph_task_id() != -1:  # DDP asks the same way
            self._saw_again(name, output)  # activation checkpointing computes it a second time
            return
        if not self._finished:
            self._take(name, module, args, output)
            if isinstance(module, nn.RNNBase):
                self._take_time(name, module, args)
        if not name:
            self._end_of_forward(output)

    def _take(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self._counts.get(name, 0)
        self._counts[name] = call + 1
        if call >= MAX_CALLS:
            self.truncated.add(name)
            return
        for index, tensor in enumerate(floating_in(output)):
            made = self._seen.get(id(tensor))
            known = made is not None and made[0]() is tensor and made[1] == tensor._version
            if made is None or not known:
                made = (weakref.ref(tensor), tensor._version, name, call)
                self._seen[id(tensor)] = made
                self._measure(name, module, call, index, tensor)
            if self.structure is None:
                self._calls.append(
                    Call(
                        name,
                        call,
                        index,
                        tensor.grad_fn,
                        made[2],
                        made[3],
                        self._source(module, args),
                    )
                )
            self._position += 1

    @property
    def has_fused_recurrence(self) -> bool:
        """Whether the network has a layer that loops over time by itself."""
        model = self._model()
        return model is not None and any(isinstance(m, nn.RNNBase) for m in model.modules())

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Inputs for a fused recurrent layer that take a gradient, so that time can be seen.

        The tensor handed on is a new one on the same memory: no number changes, and the caller's
        own tensor stays without a gradient.
        """
        if not isinstance(module, nn.RNNBase) or id(module) not in self._names or not args:
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
                RecordedTensor("activation_grad", name, "", self._position - 1, t, TIME, shape),
                sequence.device,
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

    def _measure(self, name: str, module: nn.Module, call: int, index: int, tensor: Tensor) -> None:
        key = (name, call, index)
        columns = self._columns.get(key)
        if columns is None:
            columns = self._columns[key] = self._new_columns(key, tensor)
        column, gradient = columns
        self._summarise(tensor, column)
        if tensor.dim() > 1 and _is_activation(module):
            self._units(module, tensor, column, key)
        bounds = _BOUNDS.get(type(module))
        if bounds is not None:
            low, high = bounds
            outer = (statistics.sample(tensor) - (low + high) / 2).abs() >= 0.99 * (high - low) / 2
            self._buffer.cell(tensor.device, column, "saturated").copy_(outer.float().mean())
        if tensor.requires_grad:
            _on_gradient(tensor, partial(self._gradient, gradient))
            self._hooked.add(key)

    def _new_columns(self, key: tuple[str, int, int], tensor: Tensor) -> tuple[int, int]:
        name, call, index = key
        pair = []
        for kind in ("activation", "activation_grad"):
            recorded = RecordedTensor(
                kind, name, "", self._position, call, index, tuple(tensor.shape)
            )
            pair.append(self._buffer.column(recorded, tensor.device))
        return pair[0], pair[1]

    def _units(
        self, module: nn.Module, tensor: Tensor, column: int, key: tuple[str, int, int]
    ) -> None:
        """Share of units that have been zero for every example since recording began."""
        dead = self._buffer.cell(tensor.device, column, "dead")
        if key in self._all_active:
            dead.zero_()
            return
        channel = tensor.dim() - 1 if tensor.dim() == 3 else 1  # (batch, time, features)
        others = [d for d in range(tensor.dim()) if d != channel]
        active = tensor.detach().amax(others) != 0
        if not isinstance(module, nn.ReLU):  # whose outputs are never negative
            active |= tensor.detach().amin(others) != 0
        ever = self._ever_active.get(key)
        if ever is not None and ever.shape == active.shape:
            active |= ever
        self._ever_active[key] = active
        dead.copy_(1 - active.float().mean())
        if tensor.device.type == "cpu" and dead.item() == 0.0:  # elsewhere, asking would wait
            self._all_active.add(key)

    def _summarise(self, tensor: Tensor, column: int) -> None:
        vector = statistics.elements(tensor)
        cells = self._buffer.cells(vector.device, column)
        self.numel[column] = vector.numel()
        if not vector.numel():
            return
        _write_summary(cells, vector)
        # A sample that lasts to the end of the step must be a copy; its signs are all that counts.
        signs, columns = self._signs.setdefault(vector.device, ([], []))
        signs.append(statistics.sample(vector).sign())
        columns.append(column)
        self._check(cells, vector, column)

    def _gradient(self, column: int, grad: Tensor) -> None:
        vector = statistics.elements(grad)
        cells = self._buffer.cells(vector.device, column)
        self.numel[column] = vector.numel()
        self.gradients.add(column)
        if vector.numel():
            _write_norm(cells, vector)
            self._check(cells, vector, column)

    def _check(self, cells: tuple[Tensor, ...], vector: Tensor, column: int) -> None:
        if vector.device.type == "cuda":  # to ask whether any is would make the host wait
            samples, columns = self._samples.setdefault(vector.device, ([], []))
            samples.append(statistics.sample(vector).clone())
            columns.append(column)
        else:
            _mend(cells, vector)

    def _saw_again(self, name: str, output: Any) -> None:
        call = self._recounts.get(name, 0)
        self._recounts[name] = call + 1
        for index, tensor in enumerate(floating_in(output)):
            key = (name, call, index)
            if tensor.requires_grad and key in self._columns and key not in self._hooked:
                _on_gradient(tensor, partial(self._gradient, self._columns[key][1]))
                self._hooked.add(key)

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


def _on_gradient(tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call the hook with the gradient of the tensor as it is now, before in-place changes."""
    tensor.register_hook(hook)  # type: ignore[no-untyped-call]  # torch's stub


def floating_in(output: Any) -> list[Tensor]:
    """The tensors in what a module returned that can carry a gradient, whatever the nesting."""
    return [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]


def _by_device(tensors: Mapping[str, Tensor]) -> dict[torch.device, list[str]]:
    groups: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor.device, []).append(name)
    return groups


def _stepped_by(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values / scale.to(values.device, non_blocking=True)


def _write_summary(cells: tuple[Tensor, ...], vector: Tensor) -> None:
    _write_norm(cells, vector)
    _write_extremes(cells, vector)


def _write_norm(cells: tuple[Tensor, ...], vector: Tensor) -> None:
    if vector.dtype == torch.float32:
        torch.linalg.vector_norm(vector, out=cells[_NORM])
    elif vector.dtype == torch.float64:  # `out` and `dtype` must agree, float64 may not narrow
        cells[_NORM].copy_(torch.linalg.vector_norm(vector))
    else:
        torch.linalg.vector_norm(vector, dtype=torch.float32, out=cells[_NORM])


def _mend(cells: tuple[Tensor, ...], vector: Tensor) -> None:
    """Where float32 squares left its range, take the norm again in float64; count NaN and Inf.

    Reads the norm on the host, so it is not for devices where that would wait.
    """
    norm = cells[_NORM].item()
    if _SQUARES_LOW < norm < _SQUARES_HIGH:
        return
    norm = torch.linalg.vector_norm(vector, dtype=torch.float64).item()
    cells[_NORM].fill_(norm)
    if not math.isfinite(norm):
        cells[_NONFINITE].fill_(statistics.nonfinite_share(vector))


def _write_extremes(cells: tuple[Tensor, ...], vector: Tensor) -> None:
    if not vector.numel():
        return
    if vector.dtype == torch.float32:
        torch.aminmax(vector, out=(cells[_MINIMUM], cells[_MAXIMUM]))
    else:
        low, high = torch.aminmax(vector)
        cells[_MINIMUM].copy_(low)
        cells[_MAXIMUM].copy_(high)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation"


def _reduce_shards(
    sharded: dict[int, Any], numel: dict[int, int], buffer: StatisticsBuffer
) -> None:
    """Turn the statistics of local shards into those of whole tensors: one all-gather.

    Norms add as squares, extremes as extremes, shares weighted by the size of the shard. A mesh
    dimension that holds replicas counts every element several times; the squares are divided by it.
    """
    from torch import distributed as dist

    columns = list(sharded)
    first = next(iter(sharded.values()))
    mesh = first.device_mesh
    device = first.to_local().device
    group = mesh.get_group() if mesh.ndim == 1 else None
    names = (
        "norm",
        "unclipped",
        "weight_norm",
        "update",
        "minimum",
        "maximum",
        "zero",
        "nonfinite",
    )
    local = torch.stack([buffer.get(device, name, columns) for name in names])
    sizes = buffer.constant(device, [float(g.to_local().numel()) for g in sharded.values()])
    mine = torch.cat([local, sizes.unsqueeze(0)])
    world = dist.get_world_size(group)
    everyone = torch.empty((world, *mine.shape), device=device)
    dist.all_gather_into_tensor(everyone.view(-1, mine.shape[1]), mine.contiguous(), group=group)
    size = everyone[:, -1]
    whole = buffer.constant(device, [float(numel[c]) for c in columns])
    replicas = size.sum(0) / whole
    for i, name in enumerate(names):
        values = everyone[:, i]
        if name in ("norm", "unclipped", "weight_norm", "update"):
            combined = (values.square().sum(0) / replicas).sqrt()
        elif name == "minimum":
            combined = torch.where(size > 0, values, torch.inf).amin(0)
        elif name == "maximum":
            combined = torch.where(size > 0, values, -torch.inf).amax(0)
        else:
            combined = (torch.where(size > 0, values, 0.0) * size).sum(0) / size.sum(0)
        buffer.put(device, name, columns, combined)
