"""Trace: the recorded table and its Parquet file; what every later stage reads."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscope import shown
from gradscope.errors import TraceError, nearest
from gradscope.trace.structure import Structure
from gradscope.trace.vocabulary import KINDS, STATISTICS, Kind, place_of

if TYPE_CHECKING:
    import pandas as pd

TIME = -1
"""`RecordedTensor.output` of a time step of the input of a fused recurrent layer (`nn.LSTM` and its
like): the tensor is the slice at time `call`, and only the norm of its gradient is recorded."""


@dataclass(frozen=True, slots=True)
class RecordedTensor:
    """One tensor that was measured at every recorded step: a column of the dense array."""

    kind: Kind
    """``weight``: gradient at a parameter; ``activation``: output of a module; ``activation_grad``:
    gradient at that output."""
    module: str
    """Dotted path of the module that owns the parameter or made the output."""
    parameter: str
    """Name of the parameter inside its module; empty for module outputs."""
    order: int
    """Position in execution order; parameters have that of their module, -1 if it never ran."""
    call: int = 0
    """Which call of the module within the step, from 0; always 0 for parameters."""
    output: int = 0
    """Which tensor of the output, from 0, for modules that return several; or `TIME`."""
    shape: tuple[int, ...] = ()
    """Shape at the first recorded step."""
    dtype: str = ""
    """For example ``float32``, at the first recorded step; empty where unknown."""

    @property
    def name(self) -> str:
        """Dotted name for people: ``layer1.0.conv1.weight``, ``cell[3]`` for a fourth call."""
        name = f"{self.module}.{self.parameter}".strip(".") if self.parameter else self.module
        name = name or "(root)"
        if self.output == TIME:
            return f"{name}@t{self.call}"
        if self.call:
            name += f"[{self.call}]"
        return name + (f"#{self.output}" if self.output else "")


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One optimizer step that was recorded: a row of the dense array."""

    step: int
    """Which step of the optimizer, from 0."""
    epoch: int = 0
    """What ``scope.epoch`` was."""
    loss_scale: float = 1.0
    """Factor by which a GradScaler had multiplied the loss; recorded gradients are unscaled."""
    skipped: bool = False
    """True when a GradScaler skipped the optimizer step because of non-finite gradients."""
    loss: float | None = None
    """The value that the first backward pass of the step began with, without the loss scale; None
    where it was not seen."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What theory says about one module: the factor on the gradient norm, going backwards."""

    module: str
    chi: float
    """norm(dL/d input) / norm(dL/d output), dimensionless; NaN where theory does not apply."""
    log_std: float = 0.0
    """Standard deviation of ln(chi) at finite width (1801.03744); 0 where unknown."""
    reason: str = ""
    """Which result was used, or why none applies."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Where NaN or Inf first appeared."""

    step: int
    tensor: RecordedTensor


@dataclass(frozen=True, eq=False)
class Trace:
    """The recorded table of one training run or probe, with the structure of the network.

    Held densely, ``values[step, tensor, statistic]``; ``to_pandas()`` gives the long table.

    Example:
        >>> trace = Trace.load("run.parquet")  # doctest: +SKIP
        >>> tensors, norms = trace.series("activation_grad", "norm")  # doctest: +SKIP
    """

    tensors: tuple[RecordedTensor, ...]
    steps: tuple[RecordedStep, ...]
    values: Tensor
    """float32, shape (steps, tensors, len(STATISTICS)), on the CPU; NaN where not measured."""
    present: Tensor
    """bool, shape (steps, tensors): the tensor was seen in that step. A measured NaN is present."""
    structure: Structure = field(default_factory=Structure)
    predictions: tuple[Prediction, ...] = ()
    histograms: Tensor | None = None
    """int32, shape (steps, tensors, bins), counts of log2|g|, or None (see recorder)."""
    logged: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Name -> (step, value): what ``scope.log()`` was told, and ``lr/0``, ``lr/1``, ... of each
    group of `Structure.groups` at each recorded step."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Versions, git revision and what the recorder was asked for; JSON types only."""

    def __post_init__(self) -> None:
        """Check that the arrays fit the labels."""
        expected = (len(self.steps), len(self.tensors))
        if tuple(self.present.shape) != expected or tuple(self.values.shape) != (
            *expected,
            len(STATISTICS),
        ):
            raise TraceError(
                f"trace arrays of shape {tuple(self.values.shape)} do not fit "
                f"{expected[0]} steps and {expected[1]} tensors"
            )

    def __len__(self) -> int:
        return int(self.present.sum())

    def __repr__(self) -> str:
        return f"Trace({len(self)} rows: {len(self.steps)} steps, {len(self.tensors)} tensors)"

    def _repr_html_(self) -> str:
        steps, ever = self.steps, self.present.any(dim=0).tolist()
        span = f", step {steps[0].step:,} to {steps[-1].step:,}" if steps else ""
        rows = [
            (
                kind,
                str(
                    sum(t.kind == kind and seen for t, seen in zip(self.tensors, ever, strict=True))
                ),
            )
            for kind in KINDS
        ]
        told = [
            (name, str(len(series)), f"{series[-1][1]:.4g}")
            for name, series in self.logged.items()
            if series
        ]
        return shown.card(
            f"Trace: {len(self):,} rows of {len(steps):,} recorded steps{span}",
            shown.table(("kind", "tensors"), rows),
            shown.table(("logged", "values", "last"), told[:8]),
            *(shown.line(f"not seen: {each}") for each in self.metadata.get("blind_spots", ())),
        )

    def series(self, kind: Kind, statistic: str) -> tuple[tuple[RecordedTensor, ...], Tensor]:
        """One statistic of all tensors of one kind, in execution order.

        Args:
            kind: ``weight``, ``activation`` or ``activation_grad``.
            statistic: a name from ``statistics.STATISTICS``.

        Returns:
            The tensors, and float32 of shape (steps, tensors); NaN where not measured.

        Raises:
            TraceError: no such kind or statistic.
        """
        if kind not in KINDS:
            raise TraceError(f"unknown kind '{kind}'; {nearest(kind, KINDS)}")
        if statistic not in STATISTICS:
            raise TraceError(f"unknown statistic '{statistic}'; {nearest(statistic, STATISTICS)}")
        chosen = [i for i, tensor in enumerate(self.tensors) if tensor.kind == kind]
        chosen.sort(key=lambda i: (self.tensors[i].order, i))
        column = place_of(statistic)
        return tuple(self.tensors[i] for i in chosen), self.values[:, chosen, column]

    def first_nonfinite(self) -> NonFinite | None:
        """The first step, and in it the first tensor in the order of computation, with NaN or Inf.

        Activations are computed first, in execution order; gradients after them, backwards.
        """
        bad = self.values[:, :, place_of("nonfinite_fraction")] > 0
        for row in bad.any(dim=1).nonzero().flatten().tolist()[:1]:
            indices = bad[row].nonzero().flatten().tolist()
            first = min(indices, key=self._computed_at)
            return NonFinite(self.steps[row].step, self.tensors[first])
        return None

    def _computed_at(self, index: int) -> tuple[int, int]:
        tensor = self.tensors[index]
        phase = {"activation": 0, "activation_grad": 1, "weight": 1}[tensor.kind]
        return (phase, tensor.order if phase == 0 else -tensor.order)

    def with_predictions(self, predictions: Iterable[Prediction]) -> Trace:
        """The same trace with what theory predicts beside it."""
        return dataclasses.replace(self, predictions=tuple(predictions))

    def to_pandas(self) -> pd.DataFrame:
        """The long table, one row per (step, tensor), columns as in the Parquet file.

        Returns:
            Columns step, epoch, kind, module, parameter, call, output, order, norm, rms, abs_max,
            zero_fraction and the other names of `STATISTICS`, loss_scale, skipped, loss, and
            log2_histogram where histograms were recorded.
        """
        import pandas as pd

        rows, columns = self.present.nonzero(as_tuple=True)
        steps = [self.steps[i] for i in rows.tolist()]
        tensors = [self.tensors[i] for i in columns.tolist()]
        table: dict[str, Any] = {
            "step": [s.step for s in steps],
            "epoch": [s.epoch for s in steps],
        }
        for name in ("kind", "module", "parameter", "call", "output", "order"):
            table[name] = [getattr(t, name) for t in tensors]
        measured = self.values[rows, columns].numpy()
        for i, name in enumerate(STATISTICS):
            table[name] = measured[:, i]
        table["loss_scale"] = [s.loss_scale for s in steps]
        table["skipped"] = [s.skipped for s in steps]
        table["loss"] = [math.nan if s.loss is None else s.loss for s in steps]
        if self.histograms is not None:
            table["log2_histogram"] = list(self.histograms[rows, columns].numpy())
        return pd.DataFrame(table)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as Parquet, whole or not at all.

        Args:
            path: where to; missing folders are made.

        Returns:
            The path.
        """
        from gradscope.trace import file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.write(self, path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            TraceError: the file is missing, is no Parquet file of gradscope, or of a newer schema.
        """
        from gradscope.trace import file

        return file.read(Path(path))


def nothing(**metadata: Any) -> Trace:
    """A trace without a row."""
    return Trace(
        (),
        (),
        torch.empty((0, 0, len(STATISTICS)), dtype=torch.float32, device="cpu"),
        torch.empty((0, 0), dtype=torch.bool, device="cpu"),
        metadata=metadata,
    )
