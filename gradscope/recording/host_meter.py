"""HostMeter: statistics of tensors in main memory by the compiled kernels, in one pass."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from gradscope.recording import kernels, reductions
from gradscope.recording.buffer import PLACE, WINDOW, Area, StatisticsBuffer
from gradscope.recording.kernels import (
    ALL,
    NORM,
    READ,
    UNCLIPPED,
    Reader,
)


class HostMeter:
    """Statistics of tensors in main memory; of large weights and their updates from samples."""

    def __init__(self, device: torch.device, buffer: StatisticsBuffer) -> None:
        self._device = device
        self._buffer = buffer
        self._samples: dict[int, bytearray] = {}

    def output_reader(self, column: int, *, norm_only: bool) -> Reader:
        """Make what takes the statistics of an output of a module."""
        return self._reader(column, NORM if norm_only else ALL)

    def gradient_reader(self, column: int, *, whole: bool = False) -> Reader:
        """Make what takes the gradient with respect to an output; `whole`: all statistics of it."""
        return self._reader(column, ALL if whole else NORM)

    def units_reader(self, column: int, dim: int) -> Reader:
        """Make what takes the share of units along a dimension that gave but zero for a while."""
        area, place, active = self._area(column), PLACE["dead"], bytearray()

        def convert(tensor: Tensor) -> None:
            if not reductions.is_readable(tensor):
                return
            tensor = reductions.local(tensor)
            strides = tensor.stride()
            order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
            dense = tensor.permute(order).contiguous()  # of channels_last no copy is made
            dense = dense if dense.dtype in READ else (dense != 0).float()  # complex ones too
            kernels.compiled.dead_units(
                area, column, place, order.index(dim), WINDOW, active, _cannot_read, dense
            )

        return functools.partial(
            kernels.compiled.dead_units, area, column, place, dim, WINDOW, active, convert
        )

    def parameter_gradients(
        self, columns: list[int], tensors: list[Tensor], *, unclipped: bool
    ) -> None:
        """Take what is recorded of the gradients of parameters; `unclipped`: nobody clipped yet."""
        area, wanted = self._area(max(columns)), UNCLIPPED if unclipped else ALL
        for i in kernels.compiled.measure(area, columns, tensors, wanted):
            _measure_converted(area, columns[i], wanted, tensors[i])

    def weights(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Remember samples of the weights to compare with after the step, and take their norms."""
        for column, tensor in zip(columns, tensors, strict=True):
            if column not in self._samples:
                self._samples[column] = _room(_converted(tensor))
        for i, tensor in self._compare(kernels.compiled.remember, columns, tensors, "weight_norm"):
            self._samples[columns[i]] = _room(tensor)  # it has another size or dtype now
            self._compare(kernels.compiled.remember, [columns[i]], [tensor], "weight_norm")

    def updates(self, columns: list[int], tensors: list[Tensor], *, thorough: bool = True) -> None:
        """Take how far the step moved the weights that were remembered, and how many it did not."""
        del thorough  # the count costs nothing beside the norm
        self._compare(kernels.compiled.change, columns, tensors, "update")

    def end(self) -> None:
        """Nothing was left to the end of the step."""

    def _reader(self, column: int, wanted: int) -> Reader:
        # It holds on to the cells, which a graph that outlives the scope still writes.
        area = self._area(column)
        convert = functools.partial(_measure_converted, area, column, wanted)
        return functools.partial(kernels.compiled.measure_one, area, column, wanted, convert)

    def _compare(
        self, kernel: Callable[..., list[int]], columns: list[int], tensors: list[Tensor], name: str
    ) -> list[tuple[int, Tensor]]:
        """Run a kernel over samples; the tensors that do not fit theirs, with their indices."""
        area, place = self._area(max(columns)), PLACE[name]
        samples = [self._samples[c] for c in columns]
        left = kernel(area, columns, tensors, samples, place)
        converted = [(i, _converted(tensors[i])) for i in left]
        return [
            (i, t) for i, t in converted if kernel(area, [columns[i]], [t], [samples[i]], place)
        ]

    def _area(self, column: int) -> Area:
        return self._buffer.area(self._device, column)


def _measure_converted(area: Area, column: int, wanted: int, tensor: Tensor) -> None:
    if not reductions.is_readable(tensor):  # as within torch.func: its cells stay empty
        return
    kernels.compiled.measure(area, [column], [_converted(tensor)], wanted)
    area.numel[column] = reductions.numel(tensor)  # not what is stored: of a sparse one all


def _cannot_read(tensor: Tensor) -> None:
    """A tensor without memory, as in the transforms of torch.func: its cells stay empty."""
    del tensor


def _room(vector: Tensor) -> bytearray:
    """What the kernels compare a parameter by: which runs of it, and room for a copy of them."""
    numel, size = vector.numel(), vector.element_size()  # the size tells the dtypes of `READ` apart
    length, stride, n = reductions.runs_for(numel)
    return bytearray(struct.pack("5q", length, stride, n, numel, size)) + bytes(length * n * size)


def _converted(tensor: Tensor) -> Tensor:
    """The elements in a form that the kernels read."""
    vector = reductions.elements(tensor)
    return vector if vector.dtype in READ else vector.float()
