"""How the statistics of one device's tensors are taken and written into its cells of the buffer.

`HostMeter` reads tensors in main memory with the compiled kernels, in one pass.
`DeviceMeter` uses torch's operations, batched where torch can, and never makes the host wait; it
also serves a CPU for which the kernels were not compiled.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradscope import statistics
from gradscope.buffer import PLACE, Area, StatisticsBuffer
from gradscope.errors import GradscopeWarning

try:
    if os.environ.get("GRADSCOPE_KERNELS") != "0":
        import gradscope._kernels as kernels

        kernels.configure(Tensor, nn.Parameter, Tensor.__dlpack_c_exchange_api__)
    else:
        kernels = None  # type: ignore[assignment]  # mypy knows only the module
except ModuleNotFoundError:  # installed without a C compiler
    kernels = None  # type: ignore[assignment]  # mypy knows only the module
except Exception as error:  # noqa: BLE001 - whatever is wrong with them, torch's operations serve
    kernels = None  # type: ignore[assignment]  # mypy knows only the module
    warnings.warn(
        f"gradscope: the compiled kernels cannot be used ({type(error).__name__}: "
        f"{' '.join(str(error).split())}); recording on a CPU is several times slower. Install "
        "gradscope again, or set GRADSCOPE_KERNELS=0 to go on without them",
        GradscopeWarning,
        stacklevel=2,
    )

_NORM, _ALL, _UNCLIPPED = 2, 4, 5
"""How many of the first raw statistics are taken: the norm and the share of NaN and Inf, those of
elements too, and of the gradient of a parameter the norm before clipping too."""

_READ = (torch.float32, torch.float64, torch.bfloat16)
"""The dtypes that the kernels read; others are converted."""

Reader = Callable[[Tensor], None]
"""Takes the statistics of one tensor into the cells that it was made for."""


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

    def gradients(
        self,
        columns: list[int],
        parameters: list[Tensor],
        others: set[int],
        marks: bytearray,
        *,
        unclipped: bool,
    ) -> list[int]:
        """Take the plain gradients in main memory, but for those already measured.

        Args:
            columns: column of each parameter, 0 where it has none yet.
            parameters: of any device.
            others: identities of parameters to leave out.
            marks: what tells the gradients that were measured; brought up to date. Empty: none.
            unclipped: whether nobody clipped yet.

        Returns:
            Indices of the gradients that are left to `parameter_gradients`.
        """
        mine = with_gradient(parameters, others)
        if kernels is None or not any(parameter.is_cpu for parameter in parameters):
            return mine
        places = [columns[i] for i in mine]
        gradients = [parameters[i].grad for i in mine]
        area = self._buffer.area(torch.device("cpu"), max(places, default=0))
        wanted = _UNCLIPPED if unclipped else _ALL
        return [mine[i] for i in kernels.measure(area, places, gradients, wanted, marks)]

    def end(self) -> None:
        """Finish what was left to the end of the step."""
        for meter in self._meters.values():
            meter.end()


def with_gradient(parameters: Sequence[Tensor], others: set[int]) -> list[int]:
    """Indices of the parameters that have a gradient, but for those of some identities."""
    return [i for i, p in enumerate(parameters) if p.grad is not None and id(p) not in others]


class HostMeter:
    """Statistics of tensors in main memory; of large weights and their updates from samples."""

    def __init__(self, device: torch.device, buffer: StatisticsBuffer) -> None:
        self._device = device
        self._buffer = buffer
        self._samples: dict[int, _Sample] = {}

    def output_reader(self, column: int, *, norm_only: bool) -> Reader:
        """Make what takes the statistics of an output of a module."""
        return self._reader(column, _NORM if norm_only else _ALL)

    def gradient_reader(self, column: int) -> Reader:
        """Make what takes the gradient with respect to an output."""
        return self._reader(column, _NORM)

    def units_reader(self, column: int, dim: int) -> Reader:
        """Make what takes the share of units along a dimension that never gave but zero."""
        area, place, active = self._area(column), PLACE["dead"], bytearray()

        def convert(tensor: Tensor) -> None:
            tensor = statistics.local(tensor)
            strides = tensor.stride()
            order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
            dense = tensor.permute(order).contiguous()  # of channels_last no copy is made
            dense = dense if dense.dtype in _READ else (dense != 0).float()  # complex ones too
            kernels.dead_units(area, column, place, order.index(dim), active, _cannot_read, dense)

        return functools.partial(kernels.dead_units, area, column, place, dim, active, convert)

    def parameter_gradients(
        self, columns: list[int], tensors: list[Tensor], *, unclipped: bool
    ) -> None:
        """Take what is recorded of the gradients of parameters; `unclipped`: nobody clipped yet."""
        area, wanted = self._area(max(columns)), _UNCLIPPED if unclipped else _ALL
        for i in kernels.measure(area, columns, tensors, wanted):
            _measure_converted(area, columns[i], wanted, tensors[i])

    def weights(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Remember samples of the weights to compare with after the step, and take their norms."""
        for column, tensor in zip(columns, tensors, strict=True):
            if column not in self._samples:
                self._samples[column] = _Sample(_converted(tensor))
        for i, tensor in self._compare(kernels.remember, columns, tensors, "weight_norm"):
            self._samples[columns[i]] = _Sample(tensor)  # it has another size or dtype now
            self._compare(kernels.remember, [columns[i]], [tensor], "weight_norm")

    def updates(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Take how far the step moved the weights that were remembered."""
        self._compare(kernels.change, columns, tensors, "update")

    def end(self) -> None:
        """Nothing was left to the end of the step."""

    def _reader(self, column: int, wanted: int) -> Reader:
        # It holds on to the cells, which a graph that outlives the scope still writes.
        area = self._area(column)
        convert = functools.partial(_measure_converted, area, column, wanted)
        return functools.partial(kernels.measure_one, area, column, wanted, convert)

    def _compare(
        self, kernel: Callable[..., list[int]], columns: list[int], tensors: list[Tensor], name: str
    ) -> list[tuple[int, Tensor]]:
        """Run a kernel over samples; the tensors that do not fit theirs, with their indices."""
        area, place = self._area(max(columns)), PLACE[name]
        samples = [self._samples[c].place for c in columns]
        left = kernel(area, columns, tensors, samples, place)
        converted = [(i, _converted(tensors[i])) for i in left]
        return [
            (i, t) for i, t in converted if kernel(area, [columns[i]], [t], [samples[i]], place)
        ]

    def _area(self, column: int) -> Area:
        return self._buffer.area(self._device, column)


def _measure_converted(area: Area, column: int, wanted: int, tensor: Tensor) -> None:
    kernels.measure(area, [column], [_converted(tensor)], wanted)
    area.numel[column] = statistics.numel(tensor)  # not what is stored: of a sparse one all


def _cannot_read(tensor: Tensor) -> None:
    """A tensor without memory, as in the transforms of torch.func: its cells stay empty."""
    del tensor


class _Sample:
    """Room for the runs of one parameter that are compared with those after the step."""

    __slots__ = ("place",)

    def __init__(self, vector: Tensor) -> None:
        numel = vector.numel()
        length, stride, n = statistics.runs_for(numel)
        before = torch.empty(length * n, dtype=vector.dtype)
        self.place = (length, stride, n, numel, before)


def _converted(tensor: Tensor) -> Tensor:
    """The elements in a form that the kernels read."""
    vector = statistics.elements(tensor)
    return vector if vector.dtype in _READ else vector.float()


class DeviceMeter:
    """Statistics by torch's operations, without a host synchronisation.

    Shares come from samples. Those of outputs are kept and counted together when the step ends.
    """

    def __init__(self, device: torch.device, buffer: StatisticsBuffer) -> None:
        self._device = device
        self._buffer = buffer
        self._before: dict[int, tuple[Tensor, float]] = {}
        self._signs: dict[int, Tensor] = {}
        self._samples: dict[int, Tensor] = {}
        self._counted: dict[int, tuple[int, int]] = {}
        """Identity and version of the gradients whose shares were taken in this step, by column."""

    def output_reader(self, column: int, *, norm_only: bool) -> Reader:
        """Make what takes the statistics of an output of a module."""

        def read(tensor: Tensor) -> None:
            vector = statistics.elements(tensor)
            self._buffer.numel[column] = statistics.numel(tensor)
            if vector.numel() and not norm_only:
                largest = self._buffer.cell(self._device, column, "abs_max")
                statistics.write_largest(vector, largest)
                # What lasts to the end of the step must be a copy; its signs are all that counts.
                self._signs[column] = statistics.sample(vector).sign()
            self._norm(column, vector)

        return read

    def gradient_reader(self, column: int) -> Reader:
        """Make what takes the gradient with respect to an output."""

        def read(gradient: Tensor) -> None:
            self._buffer.numel[column] = statistics.numel(gradient)
            self._norm(column, statistics.elements(gradient))

        return read

    def units_reader(self, column: int, dim: int) -> Reader:
        """Make what takes the share of units along a dimension that never gave but zero."""
        ever: Tensor | None = None

        def read(tensor: Tensor) -> None:
            nonlocal ever
            if not tensor.numel():
                return
            others = [d for d in range(tensor.dim()) if d != dim]
            active = torch.linalg.vector_norm(tensor.detach(), torch.inf, others) != 0
            if ever is not None and ever.shape == active.shape:
                active |= ever
            ever = active
            dead = self._buffer.cell(self._device, column, "dead")
            dead.copy_(1 - active.float().mean())

        return read

    def parameter_gradients(
        self, columns: list[int], tensors: list[Tensor], *, unclipped: bool
    ) -> None:
        """Take what is recorded of the gradients of parameters; `unclipped`: nobody clipped yet."""
        # A sample costs the host a slice, so none is taken again of a gradient that did not change,
        # except of sparse ones, as the caller adds what is not stored. Norms are: nothing but the
        # numbers tells who wrote through `.data` or by an extension.
        changed = set()
        for column, tensor in zip(columns, tensors, strict=True):
            self._buffer.numel[column] = statistics.numel(tensor)
            mark = (id(tensor), tensor._version)
            if unclipped or tensor.is_sparse or self._counted.get(column) != mark:
                self._counted[column] = mark
                changed.add(column)
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        norms = statistics.norms(vectors)
        if unclipped:
            self._buffer.put(self._device, "unclipped", columns, norms)
        self._buffer.put(self._device, "norm", columns, norms)
        self._buffer.put(self._device, "abs_max", columns, statistics.largest(vectors))
        samples = {
            c: statistics.sample(v) for c, v in zip(columns, vectors, strict=True) if c in changed
        }
        if samples:
            self._put_shares("zero", samples, statistics.zero_shares)
            self._put_shares("nonfinite", samples, statistics.nonfinite_shares)

    def weights(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Remember samples of the weights to compare with after the step, and take their norms."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        taken = [statistics.runs(v) for v in vectors]
        shares = [(v.numel() / t.numel()) ** 0.5 for v, t in zip(vectors, taken, strict=True)]
        self._put_scaled("weight_norm", columns, statistics.norms(taken), shares)
        for column, sample, share in zip(columns, taken, shares, strict=True):
            self._before[column] = (sample.clone(), share)

    def updates(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Take how far the step moved the weights that were remembered."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        before, shares = zip(*(self._before.pop(c) for c in columns), strict=True)
        after = [statistics.runs(v) for v in vectors]
        change = statistics.norms(list(torch._foreach_sub(after, before)))
        self._put_scaled("update", columns, change, shares)

    def end(self) -> None:
        """Count the samples of outputs and of the gradients at them."""
        self._counted.clear()
        for name, samples, shares in (
            ("zero", self._signs, statistics.zero_shares),
            ("nonfinite", self._samples, statistics.nonfinite_shares),
        ):
            if samples:
                self._put_shares(name, samples, shares)
                samples.clear()

    def _put_shares(
        self, name: str, samples: dict[int, Tensor], shares: Callable[[list[Tensor]], Tensor]
    ) -> None:
        self._buffer.put(self._device, name, list(samples), shares(list(samples.values())))

    def _put_scaled(
        self, name: str, columns: list[int], norms: Tensor, shares: Sequence[float]
    ) -> None:
        scaled = norms * self._buffer.constant(self._device, shares)
        self._buffer.put(self._device, name, columns, scaled)

    def _norm(self, column: int, vector: Tensor) -> None:
        if vector.numel():
            statistics.write_norm(vector, self._buffer.cell(self._device, column, "norm"))
            self._samples[column] = statistics.sample(vector).clone()


def _not_empty(columns: list[int], tensors: list[Tensor]) -> tuple[list[int], list[Tensor]]:
    vectors = {c: statistics.elements(t) for c, t in zip(columns, tensors, strict=True)}
    kept = {c: v for c, v in vectors.items() if v.numel()}
    return list(kept), list(kept.values())
