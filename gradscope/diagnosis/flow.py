"""Measured gradient flow: from a Trace to the factor per block and its slope; no verdicts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.diagnosis.robust import location
from gradscope.trace.structure import Block
from gradscope.trace.table import TIME, Trace
from gradscope.trace.vocabulary import Kind, place_of

MIN_LOOP_CALLS = 4
"""Calls of one module within one step from which they are read as a loop: three factors."""


@dataclass(frozen=True)
class GradientFlow:
    """How the gradient changes from block to block, going backwards.

    Positions are the outputs of blocks, in execution order. Blocks that never received a gradient
    are listed in ``silent`` and left out everywhere else: a zero is not a decay.
    """

    blocks: tuple[str, ...]
    """Names, input -> output; ``cell[3]`` is the fourth call of ``cell``."""
    log10_grad: tuple[float, ...]
    """Mean over the recorded steps of log10 norm(dL/d block output)."""
    log10_activation: tuple[float, ...]
    """Mean over the recorded steps of log10 rms(block output); NaN where not measured or zero."""
    chi: tuple[float, ...]
    """norm(dL/d blocks[i]) / norm(dL/d blocks[i+1]), geometric mean over steps, dimensionless;
    one less than there are blocks."""
    slope: float
    """Hodges-Lehmann centre of log10 chi, decades per block; > 0 grows towards the input.
    NaN with fewer than two blocks."""
    slope_low: float
    """Lower end of its 95 % interval; -inf with fewer than three blocks."""
    slope_high: float
    """Upper end of its 95 % interval; inf with fewer than three blocks."""
    total: float
    """Decades by which the gradient norm changes from the last to the first block."""
    first_to_last: tuple[float, ...]
    """Per recorded step: norm(dL/d first block) / norm(dL/d last block); NaN where not measured."""
    forward_slope: float = math.nan
    """As ``slope``, for the activation rms going forwards: > 0 grows towards the output."""
    forward_low: float = -math.inf
    forward_high: float = math.inf
    silent: tuple[str, ...] = ()
    """Blocks that ran but whose output had no gradient, or exactly zero, in every step."""

    @property
    def accumulated(self) -> float:
        """Decades that the slope makes over the whole depth, without single odd blocks."""
        return self.slope * len(self.chi) if self.chi else 0.0

    @property
    def forward_total(self) -> float:
        """Decades by which the activation rms changes from the first to the last block."""
        known = [value for value in self.log10_activation if math.isfinite(value)]
        return known[-1] - known[0] if len(known) > 1 else 0.0


@dataclass(frozen=True)
class WeightProfile:
    """Gradient norms of the weights of each layer, in execution order.

    Only weights with two or more dimensions: biases and normalisation gains are on another scale.
    Cancelled, unused and frozen parameters are left out.
    """

    layers: tuple[str, ...]
    """Names of the modules that own the weights."""
    log10_grad: tuple[float, ...]
    """Mean over the recorded steps of log10 norm(dL/d weights of the layer)."""
    log10_weight: tuple[float, ...]
    """The same for the norm of the weights themselves; NaN where not recorded."""
    slope: float
    """Hodges-Lehmann centre of log10(norm[i] / norm[i+1]), decades per layer; > 0 grows towards
    the input; NaN with fewer than two layers."""
    slope_low: float
    slope_high: float
    """Ends of its 95 % interval."""


def gradient_flow(trace: Trace, steps: slice | None = None) -> GradientFlow:
    """Measure how the gradient changes from block to block.

    The trunk is followed: the blocks through which every path runs. Where these are the minority,
    as with long skips, several inputs or unrolled time, all blocks are followed as they ran; a
    gradient at a parallel branch is then a part of the flow, which scatters chi and so widens the
    interval, but does not tilt it.

    Args:
        trace: recorded with activations; without, the flow is empty.
        steps: which of the recorded steps, by index; all by default.

    Returns:
        The flow along the depth, calls of one module as successive positions.
    """
    blocks = _blocks(trace)
    cuts = [block for block in blocks if block.is_cut]
    return _flow(trace, cuts if 2 * len(cuts) >= len(blocks) else blocks, steps)


def loop_flows(trace: Trace, steps: slice | None = None) -> dict[str, GradientFlow]:
    """Measure the flow over the calls of each module that runs several times in one step.

    For a recurrent network this is the flow over time; for a fused recurrent layer it is read from
    the time steps of its input.

    Args:
        trace: recorded with activations.
        steps: which of the recorded steps, by index; all by default.

    Returns:
        Module -> flow, for those with at least ``MIN_LOOP_CALLS`` calls that got a gradient.
    """
    calls: dict[tuple[int, str], list[Block]] = defaultdict(list)
    for tensor in trace.tensors:
        if tensor.kind == "activation_grad" and tensor.output in (0, TIME):
            module = tensor.module
            block = Block(tensor.name, "", (module,), module, tensor.call, is_cut=False)
            calls[tensor.output, module].append(block)
    flows = {
        module: _flow(trace, sorted(loop, key=lambda block: block.call), steps, output=output)
        for (output, module), loop in sorted(calls.items())
        if len(loop) >= MIN_LOOP_CALLS
    }
    return {name: flow for name, flow in flows.items() if len(flow.blocks) >= MIN_LOOP_CALLS}


def weight_profile(trace: Trace, steps: slice | None = None) -> WeightProfile:
    """Measure the gradient norms of the weights, layer by layer.

    Args:
        trace: any trace.
        steps: which of the recorded steps, by index; all by default.

    Returns:
        The profile from the input to the output.
    """
    chosen = slice(None) if steps is None else steps
    tensors, norms = trace.series("weight", "norm")
    _, weight_norms = trace.series("weight", "weight_norm")
    out = {*trace.structure.cancelled, *trace.structure.unused, *trace.structure.frozen}
    columns: dict[str, list[int]] = defaultdict(list)
    # Without outputs nobody knows what ran when; parameters then stand in the order they were made.
    unknown = not trace.structure.modules
    for i, tensor in enumerate(tensors):
        if (unknown or tensor.order >= 0) and len(tensor.shape) > 1 and tensor.name not in out:
            columns[tensor.module].append(i)
    grads = dict(zip(columns, _mean_log10(_columns(norms[chosen], columns.values())), strict=True))
    layers = tuple(name for name, grad in grads.items() if math.isfinite(grad))
    log10_grad = tuple(grads[name] for name in layers)
    weights = _mean_log10(_columns(weight_norms[chosen], [columns[name] for name in layers]))
    slope, low, high = location([-step for step in _differences(log10_grad)])
    return WeightProfile(layers, log10_grad, tuple(weights), slope, low, high)


def _blocks(trace: Trace) -> list[Block]:
    """The blocks of the structure; where it has none, each recorded output is one."""
    if trace.structure.blocks:
        return list(trace.structure.blocks)
    tensors, _ = trace.series("activation_grad", "norm")
    return [
        Block(t.name, "", (t.module,), t.module, t.call, is_cut=True)
        for t in tensors
        if t.output == 0
    ]


def _flow(
    trace: Trace, blocks: Sequence[Block], steps: slice | None, output: int = 0
) -> GradientFlow:
    chosen = slice(None) if steps is None else steps
    grads = _outputs(trace, blocks, "activation_grad", "norm", output)[chosen]
    activations = _outputs(trace, blocks, "activation", "rms", output)[chosen]
    usable = torch.isfinite(grads) & (grads > 0)
    heard = usable.any(dim=0)
    # A non-finite gradient is no silence: the diagnosis names it, the flow leaves it out.
    silent = ~heard & ~grads.isinf().any(dim=0)
    names = [block.name for block in blocks]
    kept = heard.nonzero().flatten().tolist()
    logs = torch.where(usable, grads, math.nan).double().log10()[:, kept]
    factors = _factors(logs)
    slope, low, high = location([value for value in factors if math.isfinite(value)])
    rms = _mean_log10(activations[:, kept])
    forward, forward_low, forward_high = location(_differences(rms))
    log10_grad = _mean_log10(grads[:, kept])
    ends = 10 ** (logs[:, 0] - logs[:, -1]) if kept else logs.new_full((len(grads),), math.nan)
    return GradientFlow(
        blocks=tuple(names[i] for i in kept),
        log10_grad=tuple(log10_grad),
        log10_activation=tuple(rms),
        chi=tuple(10**value for value in factors),
        slope=slope,
        slope_low=low,
        slope_high=high,
        total=log10_grad[0] - log10_grad[-1] if kept else 0.0,
        first_to_last=tuple(ends.tolist()),
        forward_slope=forward,
        forward_low=forward_low,
        forward_high=forward_high,
        silent=tuple(names[i] for i in silent.nonzero().flatten().tolist()),
    )


def _outputs(
    trace: Trace, blocks: Sequence[Block], kind: Kind, statistic: str, output: int
) -> Tensor:
    """One statistic of each block's output; shape (steps, blocks); inf where it is non-finite."""
    columns: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, tensor in enumerate(trace.tensors):
        # Several outputs of a module together carry its gradient; its first one is its activation.
        further = kind == "activation_grad" and tensor.output > 0 <= output
        if tensor.kind == kind and (tensor.output == output or further):
            columns[tensor.module, tensor.call].append(i)
    values = trace.values[:, :, place_of(statistic)]
    values = torch.where(values.isnan() & trace.present, math.inf, values)
    return _columns(values, [columns.get((block.output, block.call), []) for block in blocks])


def _columns(values: Tensor, groups: Collection[Sequence[int]]) -> Tensor:
    """The joint norm of each group of columns; float64, shape (steps, groups); NaN for none."""
    singles = [group[0] if len(group) == 1 else -1 for group in groups]
    absent = values.new_full((len(values), 1), math.nan)
    joint = torch.cat([values, absent], dim=1)[:, singles].double()
    for i, group in enumerate(groups):
        if len(group) > 1:
            joint[:, i] = _joint(values[:, list(group)])
    return joint


def _joint(norms: Tensor) -> Tensor:
    """Norm over several tensors from the norm of each; NaN only where all are absent."""
    absent = norms.isnan().all(dim=1)
    joint = norms.double().nan_to_num(nan=0.0, posinf=math.inf).square().sum(dim=1).sqrt()
    return torch.where(absent, math.nan, joint)


def _factors(logs: Tensor) -> list[float]:
    """Mean over steps of log10 chi, each over the steps in which both ends were measured."""
    steps = logs[:, :-1] - logs[:, 1:]
    means = steps.nanmean(dim=0)
    # Two blocks that were never measured in the same step: fall back on the means of each.
    apart = logs.nanmean(dim=0)
    return torch.where(means.isnan(), apart[:-1] - apart[1:], means).tolist() if len(logs) else []


def _mean_log10(norms: Tensor) -> list[float]:
    """Mean over the steps of log10, per column, where finite and positive; NaN where it never is.

    Args:
        norms: shape (steps, columns).
    """
    usable = torch.isfinite(norms) & (norms > 0)
    logs = torch.where(usable, norms.double(), 1.0).log10()
    return (logs.sum(dim=0) / usable.sum(dim=0)).tolist()


def _differences(values: Sequence[float]) -> list[float]:
    """Steps between successive known values."""
    known = [value for value in values if math.isfinite(value)]
    return [after - before for before, after in itertools.pairwise(known)]
