"""ParameterReader: what the recorder reads of parameters in one step: gradients, norms, updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.recording import reductions
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.meters import Meters, with_gradient
from gradscope.recording.sharding import reduce_shards
from gradscope.trace.table import RecordedTensor


class ParameterReader:
    """Gradients, norms and updates of all parameters."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        buffer: StatisticsBuffer,
        meters: Meters,
    ) -> None:
        self._buffer = buffer
        self._meters = meters
        self._optimizers = optimizers
        self._names: list[str] = []
        self._parameters: list[Tensor] = []
        self._columns: list[int] = []
        """Of each parameter; 0 until it has a gradient or is known to get one."""
        for name, parameter in model.named_parameters():
            self._names.append(name)
            self._parameters.append(parameter)
            self._columns.append(
                self._new_column(name, parameter)
                if parameter.requires_grad and not is_lazy(parameter)
                else 0
            )
        self.begin()

    def begin(self) -> None:
        """Forget the last step."""
        self._marks = bytearray()
        """Of the gradients that were measured; see `Meters.gradients`."""
        self._remembered: list[int] = []
        self._sharded: dict[int, Any] = {}

    def after_backward(self, scale: Tensor | None) -> None:
        """Take all statistics before anyone clips, and before an optimizer that may not step.

        Args:
            scale: factor that the gradients carry from loss scaling, 0-d, or None.
        """
        self._marks = bytearray()  # a new pass, though it may leave no mark on a gradient
        self._take(set(), scale, unclipped=True)

    def measure(self, optimizer: Optimizer | None, scale: Tensor | None = None) -> None:
        """Take the statistics of what has changed since the backward pass: nothing, unless clipped.

        Args:
            optimizer: leave out the parameters that only other optimizers step; None: all.
            scale: factor that the gradients still carry from loss scaling, 0-d, or None.
        """
        self._take(self._of_others(optimizer), scale, unclipped=False)

    def remember_weights(self, optimizer: Optimizer | None) -> None:
        """Before the step: norms of the weights, and a sample of each to compare with after it."""
        others = self._of_others(optimizer)
        self._remembered = with_gradient(self._parameters, others)
        for device, mine in self._by_device(self._remembered):
            columns, weights = self._of(mine)
            self._meters.of(device).weights(columns, weights)

    def measure_update(self, optimizer: Optimizer) -> None:
        """After the step: how far it moved each parameter, from the sample taken before it."""
        stepped = _stepped_by(optimizer)
        moved = [i for i in self._remembered if id(self._parameters[i]) in stepped]
        for device, mine in self._by_device(moved):
            columns, weights = self._of(mine)
            self._meters.of(device).updates(columns, weights)

    def end(self) -> None:
        """Combine what the ranks of a sharded model measured, in one collective."""
        if self._sharded:
            reduce_shards(self._sharded, self._buffer)

    def ever(self) -> set[str]:
        """Names of the parameters that got a gradient in some recorded step."""
        return {
            name
            for name, column in zip(self._names, self._columns, strict=True)
            if column in self._buffer.ever
        }

    def _new_column(self, name: str, parameter: Tensor) -> int:
        module, _, last = name.rpartition(".")
        shape, dtype = tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
        return self._buffer.column(
            RecordedTensor("weight", module, last, -1, shape=shape, dtype=dtype)
        )

    def _of(self, indices: list[int]) -> tuple[list[int], list[Tensor]]:
        """Columns and parameters."""
        for i in indices:
            if not self._columns[i]:
                self._columns[i] = self._new_column(self._names[i], self._parameters[i])
        return [self._columns[i] for i in indices], [self._parameters[i] for i in indices]

    def _by_device(self, indices: list[int]) -> list[tuple[torch.device, list[int]]]:
        groups: dict[torch.device, list[int]] = {}
        for i in indices:
            groups.setdefault(self._parameters[i].device, []).append(i)
        return list(groups.items())

    def _of_others(self, optimizer: Optimizer | None) -> set[int]:
        """The parameters that only other optimizers step, by identity."""
        others: set[int] = set()
        if optimizer is not None and len(self._optimizers) > 1:
            mine = _stepped_by(optimizer)
            for each in self._optimizers:
                others |= _stepped_by(each) - mine
        return others

    def _take(self, others: set[int], scale: Tensor | None, *, unclipped: bool) -> None:
        """Take the gradients that were not measured yet, without those of some parameters."""
        if scale is not None or self._buffer.histograms:
            left = with_gradient(self._parameters, others)
        else:
            left = self._meters.gradients(
                self._columns, self._parameters, others, self._marks, unclipped=unclipped
            )
        for device, mine in self._by_device(left):
            self._take_on(device, mine, scale, unclipped=unclipped)

    def _take_on(
        self, device: torch.device, indices: list[int], scale: Tensor | None, *, unclipped: bool
    ) -> None:
        columns, parameters = self._of(indices)
        tensors = [p.grad for p in parameters if p.grad is not None]
        self._meters.of(device).parameter_gradients(columns, tensors, unclipped=unclipped)
        scaled = ("norm", "abs_max", "unclipped") if unclipped else ("norm", "abs_max")
        for name in scaled if scale is not None else ():
            found = self._buffer.get(device, name, columns)
            self._buffer.put(device, name, columns, _unscaled(found, scale))
        for column, grad in zip(columns, tensors, strict=True):
            if grad.is_sparse:
                self._count_what_is_not_stored(column, grad)
            elif type(grad) is not Tensor and hasattr(grad, "device_mesh"):
                self._sharded[column] = grad
            if self._buffer.histograms:
                counts = reductions.log2_histogram(reductions.sample(grad))
                self._buffer.put_histogram(column, counts)

    def _count_what_is_not_stored(self, column: int, grad: Tensor) -> None:
        """What a sparse gradient does not store is zero."""
        stored = reductions.elements(grad).numel() / max(grad.numel(), 1)
        share = self._buffer.cell(grad.device, column, "zero")
        if stored:
            share.sub_(1).mul_(stored).add_(1)
        else:
            share.fill_(1.0)


def _stepped_by(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values / scale.to(values.device, non_blocking=True)
