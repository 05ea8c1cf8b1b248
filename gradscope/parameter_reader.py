"""ParameterReader: what the recorder reads of parameters in one step: gradients, norms, updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope import statistics
from gradscope.buffer import StatisticsBuffer
from gradscope.meters import Meters
from gradscope.trace import RecordedTensor


@dataclass(slots=True, eq=False)
class _Watched:
    """One parameter, and which gradient of it was measured last in this step."""

    name: str
    parameter: Tensor
    column: int = 0
    """0 until it has a gradient or is known to get one."""
    measured: tuple[int, int] | None = None
    """Identity and version of the gradient."""


class ParameterReader:
    """Gradients, norms and updates of all parameters."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        buffer: StatisticsBuffer,
        meters: Meters,
    ) -> None:
        self.ever: set[str] = set()
        """Names of the parameters that got a gradient in some recorded step."""
        self._buffer = buffer
        self._meters = meters
        self._optimizers = optimizers
        self._watched: list[_Watched] = []
        for name, parameter in model.named_parameters():
            self._watched.append(_Watched(name, parameter))
            if parameter.requires_grad:
                self._give_column(self._watched[-1])
        self._remembered: list[_Watched] = []
        self._sharded: dict[int, Any] = {}

    def begin(self) -> None:
        """Forget the last step."""
        self._remembered = []
        self._sharded = {}
        for each in self._watched:
            each.measured = None

    def after_backward(self, scale: Tensor | None) -> None:
        """Take all statistics before anyone clips, and before an optimizer that may not step.

        Args:
            scale: factor that the gradients carry from loss scaling, 0-d, or None.
        """
        self._summarise(self._grads(None), scale, unclipped=True)

    def measure(self, optimizer: Optimizer | None, scale: Tensor | None = None) -> None:
        """Take the statistics of what has changed since the backward pass: nothing, unless clipped.

        Args:
            optimizer: leave out the parameters that only other optimizers step; None: all.
            scale: factor that the gradients still carry from loss scaling, 0-d, or None.
        """
        grads = self._grads(optimizer)
        changed = [(w, g) for w, g in grads if w.measured != (id(g), g._version)]
        if changed:
            self._summarise(changed, scale, unclipped=False)

    def remember_weights(self, optimizer: Optimizer) -> None:
        """Before the step: norms of the weights, and a sample of each to compare with after it."""
        self._remembered = [watched for watched, _ in self._grads(optimizer)]
        for device, mine in _by_device(self._remembered):
            weights = [each.parameter for each in mine]
            self._meters.of(device).weights([each.column for each in mine], weights)

    def measure_update(self, optimizer: Optimizer) -> None:
        """After the step: how far it moved each parameter, from the sample taken before it."""
        stepped = _stepped_by(optimizer)
        moved = [each for each in self._remembered if id(each.parameter) in stepped]
        for device, mine in _by_device(moved):
            weights = [each.parameter for each in mine]
            self._meters.of(device).updates([each.column for each in mine], weights)

    def end(self) -> None:
        """Combine what the ranks of a sharded model measured, in one collective."""
        if self._sharded:
            _reduce_shards(self._sharded, self._buffer)

    def _give_column(self, watched: _Watched) -> None:
        module, _, last = watched.name.rpartition(".")
        shape = tuple(watched.parameter.shape)
        watched.column = self._buffer.column(
            RecordedTensor("weight", module, last, -1, shape=shape)
        )

    def _grads(self, optimizer: Optimizer | None) -> list[tuple[_Watched, Tensor]]:
        """Gradients of what an optimizer steps, and of what no optimizer does."""
        others: set[int] = set()
        if optimizer is not None and len(self._optimizers) > 1:
            mine = _stepped_by(optimizer)
            for each in self._optimizers:
                others |= _stepped_by(each) - mine
        found = []
        for watched in self._watched:
            grad = watched.parameter.grad
            if grad is not None and id(watched.parameter) not in others:
                if not watched.column:
                    self._give_column(watched)
                found.append((watched, grad))
        return found

    def _summarise(
        self, grads: list[tuple[_Watched, Tensor]], scale: Tensor | None, *, unclipped: bool
    ) -> None:
        sparse = []
        groups: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
        for watched, grad in grads:
            parameter, column = watched.parameter, watched.column
            watched.measured = (id(grad), grad._version)
            columns, tensors = groups.setdefault(parameter.device, ([], []))
            columns.append(column)
            tensors.append(grad)
            if type(grad) is not Tensor and hasattr(grad, "device_mesh"):
                self._sharded[column] = grad
            if grad.is_sparse:
                sparse.append((column, grad))
        for device, (columns, tensors) in groups.items():
            self._meters.of(device).parameter_gradients(columns, tensors, unclipped=unclipped)
            scaled = ("norm", "abs_max", "unclipped") if unclipped else ("norm", "abs_max")
            for name in scaled if scale is not None else ():
                found = self._buffer.get(device, name, columns)
                self._buffer.put(device, name, columns, _unscaled(found, scale))
            if self._buffer.histograms:
                for column, grad in zip(columns, tensors, strict=True):
                    counts = statistics.log2_histogram(statistics.sample(grad))
                    self._buffer.put_histogram(column, counts)
        for column, grad in sparse:
            self._count_what_is_not_stored(column, grad)
        if len(self.ever) < len(self._watched):
            self.ever.update(watched.name for watched, _ in grads)

    def _count_what_is_not_stored(self, column: int, grad: Tensor) -> None:
        """What a sparse gradient does not store is zero."""
        stored = statistics.elements(grad).numel() / max(grad.numel(), 1)
        share = self._buffer.cell(grad.device, column, "zero")
        if stored:
            share.sub_(1).mul_(stored).add_(1)
        else:
            share.fill_(1.0)


def _by_device(watched: Iterable[_Watched]) -> list[tuple[torch.device, list[_Watched]]]:
    groups: dict[torch.device, list[_Watched]] = {}
    for each in watched:
        groups.setdefault(each.parameter.device, []).append(each)
    return list(groups.items())


def _stepped_by(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values / scale.to(values.device, non_blocking=True)


def _reduce_shards(sharded: dict[int, Any], buffer: StatisticsBuffer) -> None:
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
    norms = ("norm", "unclipped", "weight_norm", "update")
    names = (*norms, "abs_max", "zero", "nonfinite")
    local = torch.stack([buffer.get(device, name, columns) for name in names])
    sizes = buffer.constant(device, [float(g.to_local().numel()) for g in sharded.values()])
    mine = torch.cat([local, sizes.unsqueeze(0)])
    world = dist.get_world_size(group)
    everyone = torch.empty((world, *mine.shape), device=device)
    dist.all_gather_into_tensor(everyone.view(-1, mine.shape[1]), mine.contiguous(), group=group)
    size = everyone[:, -1]
    whole = buffer.constant(device, [float(buffer.numel[c]) for c in columns])
    replicas = size.sum(0) / whole
    for i, name in enumerate(names):
        values = torch.where(size > 0, everyone[:, i], 0.0)  # an empty shard has no statistics
        if name in norms:
            combined = (values.square().sum(0) / replicas).sqrt()
        elif name == "abs_max":
            combined = values.amax(0)
        else:
            combined = (values * size).sum(0) / size.sum(0)
        buffer.put(device, name, columns, combined)
