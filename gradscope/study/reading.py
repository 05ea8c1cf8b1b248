"""From one cell on disk to the few numbers that a report draws; thins what is long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gradscope.diagnosis.flow import GradientFlow, gradient_flow, weight_profile
from gradscope.diagnosis.judge import diagnose
from gradscope.engines.local import Local
from gradscope.engines.placement import cores
from gradscope.engines.task import Event
from gradscope.study.measures import Columns, Floats, Kept, evenly, measures
from gradscope.study.results import CellResult, History
from gradscope.trace.table import RecordedTensor, Trace

MANY = 200
"""Cells from which several processes read them: starting one costs as much as reading fifty."""


@dataclass(frozen=True)
class Limits:
    """How much of each cell is kept; the page says so where something was left out."""

    steps: int = 60
    """Recorded steps in a heat map."""
    layers: int = 400
    """Layers in a heat map."""
    losses: int = 400
    """Points of a loss curve."""

    @classmethod
    def for_cells(cls, n: int) -> Limits:
        """The more cells, the less of each, so that the file stays below tens of megabytes."""
        share = min(1.0, 64 / max(n, 1))
        return cls(
            steps=max(8, round(60 * share)),
            layers=max(50, round(400 * share)),
            losses=max(60, round(400 * share)),
        )


@dataclass(frozen=True)
class Heat:
    """Gradient norm of each layer at each recorded step."""

    layers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    log10: Floats = field(default_factory=lambda: np.empty((0, 0)))
    """Shape (steps, layers); NaN where not measured or zero."""
    quantity: str = ""
    """What the norm is of, for people."""
    thinned: bool = False


@dataclass(frozen=True)
class Curve:
    """Training loss over the steps."""

    step: tuple[int, ...] = ()
    raw: tuple[float, ...] = ()
    smooth: tuple[float, ...] = ()
    """Exponential moving average, see `smoothed`."""
    thinned: bool = False


@dataclass(frozen=True)
class Reading:
    """What the report keeps of one cell."""

    result: CellResult
    flow: GradientFlow | None = None
    predicted: tuple[float, ...] = ()
    """Predicted chi at the place of each measured one; NaN where theory says nothing."""
    steps: tuple[int, ...] = ()
    """The recorded steps, at the place of each ``flow.first_to_last``."""
    weights: tuple[tuple[str, float], ...] = ()
    """Layer and log10 of the norm of the gradient of its weights, in execution order."""
    heat: Heat = field(default_factory=Heat)
    curve: Curve = field(default_factory=Curve)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    trace_error: str = ""
    """Why there is no trace, for cells that should have one."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of the trace."""
    measured: dict[str, Columns] = field(default_factory=dict)
    """Tables of what was measured beside the flow, see `measures`."""
    types: dict[str, str] = field(default_factory=dict)
    """Name of a block or module -> its class."""
    body: int = 0
    """How many of the blocks of the flow come before the head, see `body`."""
    n_layers: int = 0
    """Modules that own parameters with a gradient."""
    n_tensors: int = 0
    """Parameter tensors with a gradient."""
    n_parameters: int = 0

    @property
    def verdict(self) -> str:
        """The verdict on the gradient; empty where there is no trace."""
        return str(self.diagnosis.get("verdict", ""))


def read_cell(result: CellResult, limits: Limits, trace: Trace | None = None) -> Reading:
    """Read one cell and keep what the report draws.

    Args:
        result: the cell.
        limits: how much to keep.
        trace: its trace, where it is not to be read from ``result.trace_path``.

    Returns:
        The reading; without gradients where the trace is absent or unreadable.
    """
    curve = loss_curve(result.history, limits.losses)
    if trace is None and result.trace_path is None:
        return Reading(result, curve=curve)
    try:
        trace = trace or result.trace()
    except Exception as error:  # noqa: BLE001  # one bad file must not cost the whole report
        return Reading(result, curve=curve, trace_error=" ".join(str(error).split()))
    flow = gradient_flow(trace)
    profile = weight_profile(trace)
    types = {info.name: info.type for info in trace.structure.modules}
    types |= {block.name: block.type for block in trace.structure.blocks if block.type}
    return Reading(
        result,
        flow=flow,
        predicted=predicted_chi(trace, flow),
        steps=tuple(step.step for step in trace.steps),
        weights=tuple(zip(profile.layers, profile.log10_grad, strict=True)),
        heat=heat(trace, limits),
        curve=curve,
        diagnosis=diagnose(trace).to_dict(),
        metadata=trace.metadata,
        measured=measures(trace, Kept(limits.layers, limits.losses, limits.losses)),
        types=types,
        body=body([types.get(name, "") for name in flow.blocks]),
        n_layers=len({t.module for t in trace.tensors if t.kind == "weight"}),
        n_tensors=sum(t.kind == "weight" for t in trace.tensors),
        n_parameters=result.n_parameters
        or sum(math.prod(t.shape) for t in trace.tensors if t.kind == "weight"),
    )


def body(types: Sequence[str]) -> int:
    """How many blocks come before the head.

    The head ends the network: what follows the last block of the commonest class, and the output
    layer where that class goes to the end. Its step from the logits back has a size of its own.

    Args:
        types: class of each block, in execution order.

    Returns:
        At least one where there is a block.
    """
    if len(types) < 2:
        return len(types)
    commonest = Counter(types).most_common(1)[0][0]
    last = max(i for i, kind in enumerate(types) if kind == commonest)
    return min(last + 1, len(types) - 1)


def read_cells(
    results: Sequence[CellResult], limits: Limits, traces: Mapping[str, Trace]
) -> tuple[Reading, ...]:
    """Read all cells, many of them in several processes.

    Args:
        results: the cells.
        limits: how much to keep of each.
        traces: cell id -> its trace, where it is not on disk.

    Returns:
        A reading per cell, in their order.
    """
    found: dict[str, Reading] = {}
    if len(results) >= MANY and not traces:

        def collect(event: Event) -> None:
            if event.kind == "finished":
                found[event.task] = event.value

        jobs = min(cores(), 8)
        if jobs > 1:
            Local(jobs).run(results, partial(_read_task, limits), collect)
    return tuple(
        found.get(r.id) or read_cell(r, limits, traces.get(r.id)) for r in results
    )  # a process that was lost leaves its cell to this one


def _read_task(limits: Limits, result: CellResult, _tell: Any) -> Reading:
    return read_cell(result, limits)


def predicted_chi(trace: Trace, flow: GradientFlow) -> tuple[float, ...]:
    """The theoretical chi at the place of each measured one.

    chi[i] lies between the outputs of blocks i and i+1, so it is the factor of block i+1: its own
    prediction where there is one, else the product over the modules inside, if all have one.

    Returns:
        As many as there are measured ones; NaN where theory says nothing.
    """
    known = {p.module: p.chi for p in trace.predictions}
    members = {block.name: block.modules for block in trace.structure.blocks}

    def of(block: str) -> float:
        if math.isfinite(known.get(block, math.nan)):
            return known[block]
        inside = [known[m] for m in members.get(block, ()) if m in known]
        return math.prod(inside) if inside else math.nan

    return tuple(of(block) for block in flow.blocks[1:]) if known else (math.nan,) * len(flow.chi)


def heat(trace: Trace, limits: Limits) -> Heat:
    """Gradient norm of each layer with weights at each recorded step, thinned to the limits.

    The gradient with respect to the layers' outputs where it was recorded, else with respect to
    their weights.
    """
    tensors, norms = trace.series("activation_grad", "norm")
    weighted = {t.module for t in trace.tensors if t.kind == "weight" and len(t.shape) > 1}
    chosen = [i for i, t in enumerate(tensors) if t.module in weighted and t.output == 0]
    quantity = "gradient with respect to the layer's output"
    if not chosen:
        tensors, norms = trace.series("weight", "norm")
        chosen = [i for i, t in enumerate(tensors) if len(t.shape) > 1]
        quantity = "gradient with respect to the layer's weights"
    columns = [chosen[i] for i in evenly(len(chosen), limits.layers)]
    rows = evenly(len(trace.steps), limits.steps)
    values = norms[rows][:, columns].double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        log10 = np.where(np.isfinite(values) & (values > 0), np.log10(values), np.nan)
    return Heat(
        layers=tuple(_layer(tensors[i]) for i in columns),
        steps=tuple(trace.steps[i].step for i in rows),
        log10=log10,
        quantity=quantity,
        thinned=len(rows) < len(trace.steps) or len(columns) < len(chosen),
    )


def _layer(tensor: RecordedTensor) -> str:
    return tensor.name.removesuffix(".weight") if tensor.kind == "weight" else tensor.name


def loss_curve(history: History, limit: int) -> Curve:
    """The loss over the steps, raw and smoothed, thinned after smoothing; NaN for non-finite."""
    losses = np.array([x if x is not None else math.nan for x in history.step_loss], dtype=float)
    losses[~np.isfinite(losses)] = math.nan
    smooth = smoothed(losses)
    kept = evenly(len(losses), limit)
    return Curve(
        step=tuple(kept),
        raw=tuple(losses[kept].tolist()),
        smooth=tuple(smooth[kept].tolist()),
        thinned=len(kept) < len(losses),
    )


def smoothed(losses: Floats) -> Floats:
    """Exponential moving average with a span of 5 % of the steps, unbiased at the start.

    Args:
        losses: shape (steps,); NaN is skipped.

    Returns:
        The same shape; NaN where the loss itself is.
    """
    import pandas as pd

    if not len(losses):
        return losses
    span = max(3.0, 0.05 * len(losses))
    average = pd.Series(losses).ewm(span=span, ignore_na=True).mean().to_numpy(copy=True)
    average[np.isnan(losses)] = math.nan
    return average


def first_bad_step(losses: Sequence[float]) -> int | None:
    """The first step whose loss was NaN or infinite."""
    for step, loss in enumerate(losses):
        if loss is None or not math.isfinite(loss):
            return step
    return None
