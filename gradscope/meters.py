"""How the statistics of one device's tensors are taken and written into its cells of the buffer.

`HostMeter` reads tensors in main memory with the compiled kernels of `_kernels.c`, each in one pass.
`DeviceMeter` uses torch's operations, batched where torch can, and never makes the host wait; it
also serves a CPU for which the kernels were not compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradscope import statistics
from gradscope.buffer import StatisticsBuffer

try:
    from gradscope import _kernels as kernels
except ImportError:  # installed from source without a C compiler
    kernels = None  # type: ignore[assignment]  # mypy knows only the module

_GRADIENT, _ALL = 2, 4
"""How many of the first raw statistics are taken of a gradient of an output, and of others."""

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
"""The dtypes that the kernels read; others are converted."""

_PLAIN = (Tensor, nn.Parameter)


class Meters:
    """The meter of each device, made when it is first asked for."""

    def __init__(self, buffer: StatisticsBuffer) -> None:
        self._buffer = buffer
        self._meters: dict[torch.device, HostMeter | DeviceMeter] = {}

    def of(self, device: torch.device) -> HostMeter | DeviceMeter:
        """The meter of a device."""
        meter = self._meters.get(device)
        if meter is None:
            kind = HostMeter if device.type == "cpu" and kernels is not None else DeviceMeter
            meter = self._meters[device] = kind(device, self._buffer)
        return meter

    def begin(self) -> None:
        """Start a step."""
        for meter in self._meters.values():
            meter.begin()

    def end(self) -> None:
        """Finish what was left to the end of the step."""
        for meter in self._meters.values():
            meter.end()


class HostMeter:
    """Statistics of tensors in main memory, exact but for the size of updates."""

    def __init__(self, device: torch.device, buffer: StatisticsBuffer) -> None:
        self._device = device
        self._buffer = buffer
        self._samples: dict[int, _Sample] = {}
        self._active: dict[int, Tensor] = {}
        self._threads = torch.get_num_threads()

    def output(self, column: int, tensor: Tensor) -> None:
        """Take what is recorded of the output of a module."""
        self._summarise(tensor, self._buffer.address(self._device, column), _ALL)

    def output_gradient(self, column: int, tensor: Tensor) -> None:
        """Take what is recorded of the gradient with respect to an output."""
        self._summarise(tensor, self._buffer.address(self._device, column), _GRADIENT)

    def parameter_gradients(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take what is recorded of the gradients of parameters, but for their updates."""
        for column, tensor in zip(columns, tensors, strict=True):
            self._summarise(tensor, self._buffer.address(self._device, column), _ALL)

    def weights(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take the norms of the weights, and remember samples to compare with after the step."""
        for column, tensor in zip(columns, tensors, strict=True):
            vector, code = _readable(tensor)
            address, numel = vector.data_ptr(), vector.numel()
            norm = self._buffer.address(self._device, column, "weight_norm")
            kernels.summarise(address, code, numel, norm, 1, self._threads)
            sample = self._samples.get(column)
            if sample is None or sample.numel != numel or sample.code != code:
                sample = self._samples[column] = _Sample(numel, code, vector.dtype)
            kernels.copy_runs(address, code, *sample.runs, sample.address)

    def updates(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take how far the step moved the weights that were remembered."""
        for column, tensor in zip(columns, tensors, strict=True):
            vector, code = _readable(tensor)
            sample = self._samples[column]
            out = self._buffer.address(self._device, column, "update")
            kernels.change(
                vector.data_ptr(), code, *sample.runs, sample.address, sample.numel, out
            )

    def dead_units(self, column: int, tensor: Tensor, dim: int) -> None:
        """Take the share of units along a dimension that never had an output but zero."""
        tensor = tensor.detach()
        code = _CODES.get(tensor.dtype)
        if code is None:
            tensor, code = tensor.float(), _CODES[torch.float32]
        if not tensor.is_contiguous():  # channels_last is dense in another order
            order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
            tensor, dim = tensor.permute(order).contiguous(), order.index(dim)
        units, inner = tensor.shape[dim], tensor.stride(dim)
        active = self._active.get(column)
        if active is None or active.numel() != units:
            active = self._active[column] = torch.zeros(units, dtype=torch.uint8)
        outer = tensor.numel() // (units * inner)
        out = self._buffer.address(self._device, column, "dead")
        kernels.dead_units(tensor.data_ptr(), code, outer, units, inner, active.data_ptr(), out)

    def end(self) -> None:
        """Nothing was left to the end of the step."""

    def begin(self) -> None:
        """Use as many threads as torch does."""
        self._threads = torch.get_num_threads()

    def _summarise(self, tensor: Tensor, out: int, wanted: int) -> None:
        vector, code = _readable(tensor)
        kernels.summarise(vector.data_ptr(), code, vector.numel(), out, wanted, self._threads)


class _Sample:
    """Room for the runs of one parameter that are compared with those after the step."""

    __slots__ = ("_before", "address", "code", "numel", "runs")

    def __init__(self, numel: int, code: int, dtype: torch.dtype) -> None:
        self.numel, self.code = numel, code
        self.runs = length, _, n = statistics.runs_for(numel)
        self._before = torch.empty(length * n, dtype=dtype)
        self.address = self._before.data_ptr()


def _readable(tensor: Tensor) -> tuple[Tensor, int]:
    """The elements in a form that the kernels read, and its code."""
    code = _CODES.get(tensor.dtype)
    if code is not None and type(tensor) in _PLAIN and tensor.is_contiguous():
        return tensor, code  # any shape: the kernels only read along memory
    vector = statistics.elements(tensor)
    code = _CODES.get(vector.dtype)
    return (vector.float(), _CODES[torch.float32]) if code is None else (vector, code)


class DeviceMeter:
    """Statistics by torch's operations, without a host synchronisation.

    Shares come from samples. Those of outputs are kept and counted together when the step ends.
    """

    def __init__(self, device: torch.device, buffer: StatisticsBuffer) -> None:
        self._device = device
        self._buffer = buffer
        self._before: dict[int, tuple[Tensor, float]] = {}
        self._active: dict[int, Tensor] = {}
        self._signs: dict[int, Tensor] = {}
        self._samples: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Nothing is left from the last step."""

    def output(self, column: int, tensor: Tensor) -> None:
        """Take what is recorded of the output of a module."""
        vector = statistics.elements(tensor)
        if not vector.numel():
            return
        statistics.write_largest(vector, self._buffer.cell(self._device, column, "abs_max"))
        # A sample that lasts to the end of the step must be a copy; its signs are all that counts.
        self._signs[column] = statistics.sample(vector).sign()
        self.output_gradient(column, vector)

    def output_gradient(self, column: int, tensor: Tensor) -> None:
        """Take what is recorded of the gradient with respect to an output."""
        vector = statistics.elements(tensor)
        if not vector.numel():
            return
        statistics.write_norm(vector, self._buffer.cell(self._device, column, "norm"))
        self._samples[column] = statistics.sample(vector).clone()

    def parameter_gradients(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take what is recorded of the gradients of parameters, but for their updates."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        samples = [statistics.sample(v) for v in vectors]
        for name, values in (
            ("norm", statistics.norms(vectors)),
            ("abs_max", statistics.largest(vectors)),
            ("zero", statistics.zero_shares(samples)),
            ("nonfinite", statistics.nonfinite_shares(samples)),
        ):
            self._buffer.put(self._device, name, columns, values)

    def weights(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take the norms of the weights, and remember samples to compare with after the step."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        self._buffer.put(self._device, "weight_norm", columns, statistics.norms(vectors))
        for column, vector in zip(columns, vectors, strict=True):
            taken = statistics.runs(vector)
            share = (vector.numel() / taken.numel()) ** 0.5
            self._before[column] = (taken.clone(), share)

    def updates(self, columns: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Take how far the step moved the weights that were remembered."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        before, shares = zip(*(self._before.pop(c) for c in columns), strict=True)
        after = [statistics.runs(v) for v in vectors]
        change = statistics.norms(list(torch._foreach_sub(after, before)))
        self._buffer.put(
            self._device, "update", columns, change * self._buffer.constant(self._device, shares)
        )

    def dead_units(self, column: int, tensor: Tensor, dim: int) -> None:
        """Take the share of units along a dimension that never had an output but zero."""
        others = [d for d in range(tensor.dim()) if d != dim]
        active = torch.linalg.vector_norm(tensor.detach(), torch.inf, others) != 0
        ever = self._active.get(column)
        if ever is not None and ever.shape == active.shape:
            active |= ever
        self._active[column] = active
        self._buffer.cell(self._device, column, "dead").copy_(1 - active.float().mean())

    def end(self) -> None:
        """Count the samples of outputs and of the gradients at them."""
        for name, samples, shares in (
            ("zero", self._signs, statistics.zero_shares),
            ("nonfinite", self._samples, statistics.nonfinite_shares),
        ):
            if samples:
                found = shares(list(samples.values()))
                self._buffer.put(self._device, name, list(samples), found)
                samples.clear()


def _not_empty(
    columns: Sequence[int], tensors: Sequence[Tensor]
) -> tuple[list[int], list[Tensor]]:
    vectors = {c: statistics.elements(t) for c, t in zip(columns, tensors, strict=True)}
    kept = {c: v for c, v in vectors.items() if v.numel()}
    return list(kept), list(kept.values())
