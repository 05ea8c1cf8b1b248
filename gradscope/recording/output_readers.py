"""OutputReaders: what is taken of an output of a module, and of the gradient at it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.layers import BOUNDS
from gradscope.recording import reductions
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.guard import Guard
from gradscope.recording.kernels import Reader
from gradscope.recording.meters import Meters
from gradscope.recording.variation import Variation, is_worth_it
from gradscope.trace.table import RecordedTensor
from gradscope.trace.vocabulary import Kind

_KINDS: tuple[Kind, Kind] = ("activation", "activation_grad")


@dataclass(slots=True)
class Output:
    """What is known of one output of one call of a module, the same in every step."""

    column: int
    device: torch.device
    read: Reader
    also: tuple[Reader, ...]
    """What else is taken of it: its variation; of activations, dead and saturated units."""
    read_gradient: Reader
    varies: bool
    """Whether its variation is taken."""


class OutputReaders:
    """Makes the readers of outputs as they are first seen."""

    def __init__(
        self,
        buffer: StatisticsBuffer,
        meters: Meters,
        guard: Guard,
        variation: Variation,
        *,
        norms_only: bool,
    ) -> None:
        self.gradients: set[int] = set()
        """Columns of gradients with respect to outputs, which carry the loss scale."""
        self._buffer = buffer
        self._meters = meters
        self._guard = guard
        self._variation = variation
        self._norms_only = norms_only

    def of(
        self, name: str, module: nn.Module, tensor: Tensor, *, call: int, index: int, position: int
    ) -> Output:
        """Those of one output of one call of a module.

        Args:
            name: of the module.
            module: it.
            tensor: the output as it is for the first time.
            call: from 0 in each step.
            index: of the tensor among those of the call.
            position: in execution order.
        """
        shape = tuple(tensor.shape)
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
        read_gradient = self._guard.wrap_reader(
            f"at the gradient of the output of '{name}'",
            meter.gradient_reader(gradient, whole=narrow),
        )
        return Output(column, tensor.device, reader, tuple(also), read_gradient, varies)

    def _saturation_reader(self, column: int, low: float, high: float) -> Reader:
        buffer = self._buffer

        def read(tensor: Tensor) -> None:
            if not reductions.is_readable(tensor):
                return
            share = buffer.cell(tensor.device, column, "saturated")
            share.copy_(reductions.saturated_share(tensor, low, high))

        return read
