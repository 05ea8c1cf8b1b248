"""StatisticsBuffer: recorded numbers on their device, copied out in one piece per flush, thinned.

One row per recorded step, one column per tensor, a handful of raw statistics each. Kernels write
directly into the cells of a ring of `RING` rows, which leaves the device when it is full, without
the host waiting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradscope.recording.copies import Copy
from gradscope.trace.table import RecordedStep, RecordedTensor
from gradscope.trace.vocabulary import HISTOGRAM_RANGE

RAW = (
    "norm",
    "nonfinite",
    "abs_max",
    "zero",
    "unclipped",
    "saturated",
    "dead",
    "weight_norm",
    "update",
    "unchanged",
    "variation",
    "carried",
)
"""What the device stores per tensor; `finish` turns it into the statistics of the table. The first
five, and the update with what it left unchanged, stand in the order in which the kernels write
them."""

PLACE = {name: i for i, name in enumerate(RAW)}
"""Place of each among the cells of a column."""

RING = 32
"""Recorded steps that wait on the device before they are copied out."""

WINDOW = 16
"""Recorded steps after which a unit that was active begins to be forgotten: it is dead when it gave
nothing in this window nor in the one before."""

DENSE = 16
"""The first recorded steps are never thinned out: most of what goes wrong goes wrong there."""

UNSEEN = -1
"""Stands for the number of elements of a tensor that did not come up in a step."""

META = 0
"""Column that holds the loss scale (as `norm`), whether the step found Inf (as `zero`) and the
value of the loss with that scale (as `abs_max`), where it was seen: then it has one element."""

BINS = HISTOGRAM_RANGE[1] - HISTOGRAM_RANGE[0]


@dataclass(slots=True)
class Row:
    """What the host knows of one recorded step."""

    step: RecordedStep
    numel: list[int]
    """Real numbers in the tensor of each column; `UNSEEN` where there was none in this step."""
    scaled: frozenset[int]
    """Columns whose raw values still carry the loss scale."""
    raw: Tensor | None = None
    histogram: Tensor | None = None


class Area:
    """The ring of rows on one device; the cells of one of them are being written."""

    def __init__(self, device: torch.device, numel: list[int]) -> None:
        self.capacity = 0
        """Columns that there is room for."""
        self.numel = numel
        """`StatisticsBuffer.numel`, for those who write to both."""
        self.ring = torch.empty((RING, 0, len(RAW)), dtype=torch.float32, device=device)
        self._rows = self.ring.unbind()
        self.turn(0)

    def grow(self, capacity: int) -> None:
        """Make room for more columns; what was written stays."""
        shape, device = (RING, capacity, len(RAW)), self.ring.device
        with torch.inference_mode(mode=False):  # else nobody could write to it outside of it
            ring = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
            ring[:, : self.capacity] = self.ring
        self.ring, self.capacity = ring, capacity
        self._rows = ring.unbind()
        self.turn(self._row)

    def turn(self, row: int) -> None:
        """Go on with the cells of another row."""
        self._row = row
        self.cells = self._rows[row]

    def turn_back(self) -> None:
        """Go on with this row as the first one."""
        if self._row:
            self._rows[0].copy_(self.cells)
            self.turn(0)


class StatisticsBuffer:
    """Rows of raw statistics: fixed memory on the device, bounded memory on the host."""

    def __init__(self, every: int, max_steps: int, *, histograms: bool) -> None:
        self.interval = every
        self.columns: list[RecordedTensor] = []
        self.numel = [UNSEEN]
        """Real numbers in the tensor of each column in this step; who measures one writes it."""
        self.ever: set[int] = set()
        """Columns that were seen in some step, be it one that was thinned out since."""
        self.histograms = histograms
        self.on_full: Callable[[int], None] | None = None
        """Called with the step that filled the ring."""
        self._max_steps = max_steps
        self._index: dict[tuple[str, str, str, int, int], int] = {}
        self._areas: dict[torch.device, Area] = {}
        self._rows: list[Row] = []
        self._waiting: list[Row] = []
        self._in_flight: list[tuple[list[Row], list[Copy]]] = []
        self._dense_steps: set[int] = set()
        self._first_nonfinite: int | None = None
        self._constants: dict[tuple[torch.device, torch.dtype, tuple[float, ...]], Tensor] = {}
        self._histogram: Tensor | None = None

    def wants(self, step: int) -> bool:
        """Whether this step is to be recorded, by the interval that thinning has reached."""
        return step % self.interval == 0

    def keeps(self, step: int) -> bool:
        """Whether a recorded step outlasts the thinning so far."""
        first = step in self._dense_steps or step == self._first_nonfinite
        return first or step % self.interval == 0

    def column(self, tensor: RecordedTensor) -> int:
        """The column of a tensor, made when it is first asked for; column 0 is not a tensor's."""
        key = (tensor.kind, tensor.module, tensor.parameter, tensor.call, tensor.output)
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.columns) + 1
            self.columns.append(tensor)
            self.numel.append(UNSEEN)
        return index

    def cell(self, device: torch.device, column: int, name: str) -> Tensor:
        """One 0-d float32 cell, a view to be written by kernels."""
        return self.area(device, column).cells[column, PLACE[name]]

    def area(self, device: torch.device, column: int) -> Area:
        """The cells of a device, with room up to a column and for all columns made so far."""
        area = self._areas.get(device)
        if area is None:
            area = self._areas[device] = Area(device, self.numel)
            area.turn(len(self._waiting))
        needed = max(column, len(self.columns))
        if area.capacity <= needed:
            area.grow(max(2 * needed, 64))
        return area

    def put(self, device: torch.device, name: str, columns: Sequence[int], values: Tensor) -> None:
        """Write one raw statistic of many tensors.

        Args:
            device: where they live.
            name: one of `RAW`.
            columns: column of each.
            values: float32, shape (len(columns),).
        """
        area = self.area(device, max(columns))
        area.cells[:, PLACE[name]].index_copy_(0, self._on_device(device, columns), values)

    def get(self, device: torch.device, name: str, columns: Sequence[int]) -> Tensor:
        """Read one raw statistic of many tensors of the current step, on the device."""
        area = self.area(device, max(columns))
        return area.cells[:, PLACE[name]].index_select(0, self._on_device(device, columns))

    def constant(self, device: torch.device, values: Sequence[float]) -> Tensor:
        """A float32 vector that is the same at every step, copied to the device only once."""
        return self._cached(device, tuple(values), torch.float32)

    def put_histogram(self, column: int, counts: Tensor) -> None:
        """Keep the histogram of one tensor in the current step."""
        if self._histogram is None or self._histogram.shape[0] <= column:
            shape = (len(self.columns) + 1, BINS)
            grown = torch.zeros(shape, dtype=torch.float32, device=counts.device)
            if self._histogram is not None:
                grown[: self._histogram.shape[0]] = self._histogram
            self._histogram = grown
        self._histogram[column] = counts

    def begin(self) -> None:
        """Start a row."""
        for area in self._areas.values():
            area.cells.fill_(torch.nan)
        self.numel[:] = [UNSEEN] * len(self.numel)
        self._histogram = None

    def copies(self) -> list[Copy]:
        """The cells of the current row, on their way to the host; for `fill`."""
        return [Copy(area.cells[: len(self.columns) + 1]) for area in self._areas.values()]

    def end(self, step: RecordedStep, scaled: frozenset[int]) -> Row:
        """Finish the row: `scaled` names the columns that still carry the loss scale."""
        alike = bool(self._rows) and self._rows[-1].numel == self.numel
        if not alike:
            self.ever.update(column for column, n in enumerate(self.numel) if n != UNSEEN)
        row = Row(step, self._rows[-1].numel if alike else self.numel.copy(), scaled)
        row.histogram = self._histogram
        self._waiting.append(row)
        self._rows.append(row)
        if len(self._dense_steps) < DENSE:
            self._dense_steps.add(step.step)
        if len(self._waiting) == RING:
            self.flush()
            if self.on_full is not None:
                self.on_full(step.step)
        else:
            for area in self._areas.values():
                area.turn(len(self._waiting))
        if len(self._rows) > self._max_steps:
            self._thin()
        return row

    def flush(self) -> None:
        """Start copying the waiting rows to the host; on CUDA the host does not wait for it."""
        self._settle()
        if not self._waiting:
            return
        copies = []
        for area in self._areas.values():
            copies.append(Copy(area.ring[: len(self._waiting), : len(self.columns) + 1]))
            area.turn_back()
        self._in_flight.append((self._waiting, copies))
        self._waiting = []

    def rows(self) -> list[Row]:
        """All kept rows with their numbers on the host."""
        self.flush()
        self._settle()
        return self._rows

    @property
    def recorded(self) -> int:
        """How many rows are kept; their numbers may still be on the device."""
        return len(self._rows)

    def rows_at_hand(self) -> list[Row]:
        """The kept rows whose numbers are on the host already: all that is left after a fault."""
        return [row for row in self._rows if row.raw is not None]

    def release(self) -> None:
        """Give the device memory back; rows stay."""
        self.rows()
        self._areas.clear()
        self._constants.clear()
        self._histogram = None

    def _on_device(self, device: torch.device, columns: Sequence[int]) -> Tensor:
        return self._cached(device, tuple(columns), torch.int64)

    def _cached(
        self, device: torch.device, values: tuple[float, ...], dtype: torch.dtype
    ) -> Tensor:
        key = (device, dtype, values)
        found = self._constants.get(key)
        if found is None:
            if len(self._constants) > 64:  # a network whose used parameters change every step
                self._constants.clear()
            found = self._constants[key] = torch.tensor(values, device=device, dtype=dtype)
        return found

    def _settle(self) -> None:
        for rows, copies in self._in_flight:
            block = _merged([each.read() for each in copies], len(rows))
            for row, raw, broken in zip(rows, block, _nonfinite(block), strict=True):
                row.raw = raw.clone()  # rows are thinned out one by one
                _complete(row)
                if row.histogram is not None:
                    row.histogram = row.histogram.to("cpu", torch.int32)
                if self._first_nonfinite is None and broken:
                    self._first_nonfinite = row.step.step
        self._in_flight = []

    def _thin(self) -> None:
        while len(self._rows) > self._max_steps:
            self.interval *= 2
            self._rows = [row for row in self._rows if self.keeps(row.step.step)]


def fill(row: Row, copies: Sequence[Copy]) -> None:
    """Give a finished row its numbers before its ring is full."""
    row.raw = _merged([each.read().unsqueeze(0) for each in copies], 1)[0]
    _complete(row)


def _complete(row: Row) -> None:
    assert row.raw is not None
    scale = float(row.raw[META, PLACE["norm"]])
    found_inf = float(row.raw[META, PLACE["zero"]])
    loss = float(row.raw[META, PLACE["abs_max"]])
    if not math.isnan(scale):  # there was a GradScaler
        skipped = row.step.skipped or found_inf > 0
        row.step = replace(row.step, loss_scale=scale, skipped=skipped)
    if row.numel[META] != UNSEEN:  # NaN may be its value
        row.step = replace(row.step, loss=loss / row.step.loss_scale)


def _merged(blocks: list[Tensor], n_rows: int) -> Tensor:
    """Rows whose cells were written on several devices, each cell on one of them."""
    if len(blocks) == 1:
        return blocks[0]
    width = max((block.shape[1] for block in blocks), default=1)
    merged = on_host((n_rows, width, len(RAW)), torch.nan)
    for block in blocks:
        mine = merged[:, : block.shape[1]]
        mine.copy_(torch.where(block.isnan(), mine, block))
    return merged


def on_host(shape: tuple[int, ...], value: float) -> Tensor:
    """Room for numbers of the table, whatever the defaults of the process."""
    return torch.full(shape, value, dtype=torch.float32, device="cpu")


def _nonfinite(raw: Tensor) -> list[bool]:
    """Of each row, whether a tensor had NaN or Inf."""
    tensors = raw[:, META + 1 :]
    broken = (tensors[:, :, PLACE["nonfinite"]] > 0) | tensors[:, :, PLACE["norm"]].isinf()
    found: list[bool] = broken.any(1).tolist()
    return found
