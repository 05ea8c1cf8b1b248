"""ParameterReader: what the recorder reads of parameters in one step: gradients, norms, updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope import statistics
from gradscope.buffer import StatisticsBuffer
from gradscope.meters import Meters
from gradscope.trace import RecordedTensor


class ParameterReader:
    """Gradients, norms and updates of all parameters."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        buffer: StatisticsBuffer,
        meters: Meters,
    ) -> None:
        self.numel: dict[int, int] = {}
        """Column -> number of elements, of the parameters measured in this step."""
        self.ever: set[str] = set()
        """Names of the parameters that got a gradient in some recorded step."""
        self._buffer = buffer
        self._meters = meters
        self._optimizers = optimizers
        self._parameters = dict(model.named_parameters())
        self._columns: dict[str, int] = {}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                self._column(name, parameter)
        self._versions: dict[str, tuple[int, int]] = {}
        self._remembered: list[str] = []
        self._sharded: dict[int, Any] = {}

    def begin(self) -> None:
        """Forget the last step."""
        self.numel = {}
        self._versions = {}
        self._remembered = []
        self._sharded = {}

    def after_backward(self, scale: Tensor | None) -> None:
        """Take all statistics before anyone clips, and before an optimizer that may not step.

        Args:
            scale: factor that the gradients carry from loss scaling, 0-d, or None.
        """
        grads = self._grads(None)
        self._summarise(grads, scale)
        for device, names in self._by_device(grads):
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
        changed = {n: g for n, g in grads.items() if self._versions.get(n) != (id(g), g._version)}
        self._summarise(changed, scale)

    def remember_weights(self, optimizer: Optimizer) -> None:
        """Before the step: norms of the weights, and a sample of each to compare with after it."""
        names = self._grads(optimizer)
        for device, mine in self._by_device(names):
            weights = [self._parameters[n] for n in mine]
            self._meters.of(device).weights([self._columns[n] for n in mine], weights)
        self._remembered = list(names)

    def measure_update(self, optimizer: Optimizer) -> None:
        """After the step: how far it moved each parameter, from the sample taken before it."""
        stepped = _stepped_by(optimizer)
        moved = [n for n in self._remembered if id(self._parameters[n]) in stepped]
        for device, mine in self._by_device(moved):
            weights = [self._parameters[n] for n in mine]
            self._meters.of(device).updates([self._columns[n] for n in mine], weights)

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
            grad = parameter.grad
            if grad is not None and id(parameter) not in others:
                self._column(name, parameter)
                grads[name] = grad
        return grads

    def _by_device(self, names: Iterable[str]) -> list[tuple[torch.device, list[str]]]:
        groups: dict[torch.device, list[str]] = {}
        for name in names:
            groups.setdefault(self._parameters[name].device, []).append(name)
        return list(groups.items())

    def _summarise(self, grads: dict[str, Tensor], scale: Tensor | None) -> None:
        for device, names in self._by_device(grads):
            columns = [self._columns[n] for n in names]
            mine = [grads[n] for n in names]
            self._meters.of(device).parameter_gradients(columns, mine)
            for name in ("norm", "abs_max") if scale is not None else ():
                found = self._buffer.get(device, name, columns)
                self._buffer.put(device, name, columns, _unscaled(found, scale))
            self._count_what_is_not_stored(device, columns, mine)
            if self._buffer.histograms:
                for column, grad in zip(columns, mine, strict=True):
                    counts = statistics.log2_histogram(statistics.sample(grad))
                    self._buffer.put_histogram(column, counts)
        for name, grad in grads.items():
            self.numel[self._columns[name]] = statistics.numel(self._parameters[name])
            if hasattr(grad, "device_mesh"):
                self._sharded[self._columns[name]] = grad
        self.ever |= grads.keys()

    def _count_what_is_not_stored(
        self, device: torch.device, columns: list[int], grads: list[Tensor]
    ) -> None:
        """What a sparse gradient does not store is zero."""
        for column, grad in zip(columns, grads, strict=True):
            if not grad.is_sparse:
                continue
            stored = statistics.elements(grad).numel() / max(grad.numel(), 1)
            if stored:
                share = self._buffer.cell(device, column, "zero")
                share.sub_(1).mul_(stored).add_(1)
            else:
                for name, value in (("norm", 0.0), ("abs_max", 0.0), ("zero", 1.0)):
                    self._buffer.cell(device, column, name).fill_(value)


def _stepped_by(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values / scale.to(values.device, non_blocking=True)


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
    norms = ("norm", "unclipped", "weight_norm", "update")
    names = (*norms, "abs_max", "zero", "nonfinite")
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
        values = torch.where(size > 0, everyone[:, i], 0.0)  # an empty shard has no statistics
        if name in norms:
            combined = (values.square().sum(0) / replicas).sqrt()
        elif name == "abs_max":
            combined = values.amax(0)
        else:
            combined = (values * size).sum(0) / size.sum(0)
        buffer.put(device, name, columns, combined)
