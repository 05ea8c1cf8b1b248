"""DeviceMeter: statistics by torch's operations, without making the host wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscope.recording import reductions
from gradscope.recording.buffer import WINDOW, StatisticsBuffer
from gradscope.recording.kernels import (
    Reader,
)


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
            if not reductions.is_readable(tensor):
                return
            vector = reductions.elements(tensor)
            self._buffer.numel[column] = reductions.numel(tensor)
            if vector.numel() and not norm_only:
                largest = self._buffer.cell(self._device, column, "abs_max")
                reductions.write_largest(vector, largest)
                # What lasts to the end of the step must be a copy; its signs are all that counts.
                self._signs[column] = reductions.sample(vector).sign()
            self._norm(column, vector)

        return read

    def gradient_reader(self, column: int, *, whole: bool = False) -> Reader:
        """Make what takes the gradient with respect to an output; `whole`: all statistics of it."""

        def read(gradient: Tensor) -> None:
            if not reductions.is_readable(gradient):  # as within torch.func
                return
            vector = reductions.elements(gradient)
            self._buffer.numel[column] = reductions.numel(gradient)
            self._norm(column, vector)
            if whole and vector.numel():
                largest = self._buffer.cell(self._device, column, "abs_max")
                reductions.write_largest(vector, largest)
                self._signs[column] = self._samples[column].sign()

        return read

    def units_reader(self, column: int, dim: int) -> Reader:
        """Make what takes the share of units along a dimension that gave but zero for a while."""
        before: Tensor | None = None
        now: Tensor | None = None
        calls = 0

        def read(tensor: Tensor) -> None:
            nonlocal before, now, calls
            if not reductions.is_readable(tensor) or not tensor.numel():
                return
            others = [d for d in range(tensor.dim()) if d != dim]
            active = torch.linalg.vector_norm(tensor.detach(), torch.inf, others) != 0
            if now is None or now.shape != active.shape:  # another width: nothing known
                before, calls = None, 0
            elif calls == WINDOW:
                before, calls = now, 0
            else:
                active |= now
            now, calls = active, calls + 1
            ever = active if before is None else active | before
            dead = self._buffer.cell(self._device, column, "dead")
            dead.copy_(1 - ever.float().mean())

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
            self._buffer.numel[column] = reductions.numel(tensor)
            mark = (id(tensor), tensor._version)
            if unclipped or tensor.is_sparse or self._counted.get(column) != mark:
                self._counted[column] = mark
                changed.add(column)
        self._put_nothing([c for c, t in zip(columns, tensors, strict=True) if not t.numel()])
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        norms = reductions.norms(vectors)
        if unclipped:
            self._buffer.put(self._device, "unclipped", columns, norms)
        self._buffer.put(self._device, "norm", columns, norms)
        self._buffer.put(self._device, "abs_max", columns, reductions.largest(vectors))
        samples = {
            c: reductions.sample(v) for c, v in zip(columns, vectors, strict=True) if c in changed
        }
        if samples:
            self._put_shares("zero", samples, reductions.zero_shares)
            self._put_shares("nonfinite", samples, reductions.nonfinite_shares)

    def weights(self, columns: list[int], tensors: list[Tensor]) -> None:
        """Remember samples of the weights to compare with after the step, and take their norms."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        taken = [reductions.runs(v) for v in vectors]
        shares = [(v.numel() / t.numel()) ** 0.5 for v, t in zip(vectors, taken, strict=True)]
        self._put_scaled("weight_norm", columns, reductions.norms(taken), shares)
        for column, sample, share in zip(columns, taken, shares, strict=True):
            self._before[column] = (sample.clone(), share)

    def updates(self, columns: list[int], tensors: list[Tensor], *, thorough: bool = True) -> None:
        """Take how far the step moved the weights that were remembered, and how many it did not."""
        columns, vectors = _not_empty(columns, tensors)
        if not vectors:
            return
        before, shares = zip(*(self._before.pop(c) for c in columns), strict=True)
        after = [reductions.runs(v) for v in vectors]
        change = list(torch._foreach_sub(after, before))
        self._put_scaled("update", columns, reductions.norms(change), shares)
        if thorough:  # a difference of floating-point numbers is zero only where they are equal
            self._buffer.put(self._device, "unchanged", columns, reductions.zero_shares(change))

    def end(self) -> None:
        """Count the samples of outputs and of the gradients at them."""
        self._counted.clear()
        for name, samples, shares in (
            ("zero", self._signs, reductions.zero_shares),
            ("nonfinite", self._samples, reductions.nonfinite_shares),
        ):
            if samples:
                self._put_shares(name, samples, shares)
                samples.clear()

    def _put_nothing(self, columns: list[int]) -> None:
        """What the compiled kernels tell of gradients without elements: a sum over nothing."""
        if columns:
            zeros = self._buffer.constant(self._device, [0.0] * len(columns))
            for name in ("norm", "unclipped", "nonfinite", "abs_max"):
                self._buffer.put(self._device, name, columns, zeros)

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
            reductions.write_norm(vector, self._buffer.cell(self._device, column, "norm"))
            self._samples[column] = reductions.sample(vector).clone()


def _not_empty(columns: list[int], tensors: list[Tensor]) -> tuple[list[int], list[Tensor]]:
    vectors = {c: reductions.elements(t) for c, t in zip(columns, tensors, strict=True)}
    kept = {c: v for c, v in vectors.items() if v.numel()}
    return list(kept), list(kept.values())
