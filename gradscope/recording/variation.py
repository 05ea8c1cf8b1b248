"""Variation: how much an output differs from example to example, and a weight from unit to unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradscope.recording import reductions
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.kernels import Reader
from gradscope.trace.table import RecordedTensor

ROWS = COLUMNS = 64
"""Most examples, and most features of each, that are compared."""

DENSE, EVERY, WITHIN = 3, 8, 32
"""Taken in the first three recorded steps; then of what the network returns in every eighth, and of
what lies within, which tells where it was lost, in every thirty-second."""


class Variation:
    """Takes the variation of outputs in some recorded steps, of weights in the first.

    A sample of each is copied when it is there, and at the end of the step all of one shape are
    computed together: a dozen small operations for each would cost more than all else.
    """

    def __init__(self, buffer: StatisticsBuffer) -> None:
        self._buffer = buffer
        self._steps = 0
        self._due = self._due_within = True
        self.returned: set[int] = set()
        """Columns of what the network returns."""
        self._samples: dict[int, Tensor] = {}
        """Column -> what was copied in this step."""

    def end(self) -> None:
        """A recorded step is over."""
        alike: dict[tuple[torch.device, torch.Size], list[int]] = {}
        for column, sample in self._samples.items():
            alike.setdefault((sample.device, sample.shape), []).append(column)
        for (device, _), columns in alike.items():
            samples = torch.stack([self._samples[column] for column in columns])
            self._buffer.put(device, "variation", columns, _share(samples))
        self._samples.clear()
        self._steps += 1
        self._due = self._steps < DENSE or self._steps % EVERY == 0
        self._due_within = self._steps < DENSE or self._steps % WITHIN == 0

    def reader(self, column: int) -> Reader:
        """Make what takes the variation of an output over the examples."""

        def read(tensor: Tensor) -> None:
            if self._due_within or (self._due and column in self.returned):
                self._take(tensor, column)

        return read

    def of_weights(self, model: nn.Module) -> None:
        """Take the variation of each weight over its units, as it is now."""
        for name, parameter in model.named_parameters():
            plain = parameter.requires_grad and type(parameter.data) is Tensor
            if plain and parameter.dim() > 1 and not parameter.is_meta:
                module, _, own = name.rpartition(".")
                shape, dtype = tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
                column = self._buffer.column(
                    RecordedTensor("weight", module, own, -1, shape=shape, dtype=dtype)
                )
                self._take(parameter, column)

    def _take(self, tensor: Tensor, column: int) -> None:
        found = _sample(tensor)
        if found is not None:
            self._samples[column] = found


def is_worth_it(module: nn.Module) -> bool:
    """Whether the output of a module is taken: of those with weights of their own, and of blocks.

    What lies between, activations and normalisations, seldom changes it, and there are many.
    """
    weights = module._parameters.values()
    return bool(module._modules) or any(w is not None and w.dim() > 1 for w in weights)


def variation(tensor: Tensor) -> Tensor | None:
    """Variance along the first dimension, as a share of the mean square.

    Args:
        tensor: any floating dtype and device; of large ones at most `ROWS` evenly spaced slices
            along the first dimension and `COLUMNS` elements of each are taken.

    Returns:
        0-d float32 tensor on the same device, 0 (all alike) to 1; NaN where all is zero. None where
        there is nothing to compare. No host synchronisation.
    """
    found = _sample(tensor)
    return None if found is None else _share(found)


def _sample(tensor: Tensor) -> Tensor | None:
    """A float32 copy of what is compared, one row for each slice; None where there is nothing."""
    tensor = reductions.local(tensor)
    if tensor.is_complex() or tensor.layout != torch.strided or not tensor.dim():
        return None
    rows = tensor.shape[0]
    if rows < 2 or not tensor.numel():
        return None
    if rows > ROWS:
        tensor = tensor[:: reductions.stride_for(rows, ROWS)]
    tensor = _matrix(tensor)
    stride = reductions.stride_for(tensor.shape[1], COLUMNS)
    return tensor[:, ::stride].to(torch.float32, copy=True)


def _share(matrices: Tensor) -> Tensor:
    """Of each matrix (..., rows, columns) the variance of its rows over their mean square."""
    variance, mean = torch.var_mean(matrices, -2, correction=0)
    spread = variance.mean(-1)
    return spread / (spread + mean.square_().mean(-1))


def _matrix(tensor: Tensor) -> Tensor:
    """One row for each slice along the first dimension, in place where memory allows it."""
    if tensor.dim() in {4, 5} and tensor.stride(1) == 1:  # channels_last
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(tensor.shape[0], -1)
