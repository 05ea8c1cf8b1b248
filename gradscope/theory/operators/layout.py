"""Rules for operations that move, join, pool or resample elements."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from gradscope.theory.flux import Mix, Operation
from gradscope.theory.operators.nodes import (
    MOVING,
    PERMUTING,
    Rule,
    dims,
    mean_square,
    output_shape,
    same_channels,
    saved,
)

_NOISE = 20_000
"""Elements of white noise from which the factor of a resampling is read: a spread of 1 %."""


def _move(node: Any) -> Operation:
    return Operation((1.0,) * len(node.next_functions), keeps_channels=same_channels(node))


def _permute(node: Any) -> Operation:
    return Operation((1.0,) * len(node.next_functions))


def _mean(node: Any) -> Operation:
    return Operation((1.0 / _reduced(node),), "mean", keeps_channels=same_channels(node))


def _sum(node: Any) -> Operation:
    return Operation((float(_reduced(node)),), "total", keeps_channels=same_channels(node))


def _reduced(node: Any) -> int:
    sizes = saved(node, "self_sym_sizes")
    if sizes is None:
        return int(saved(node, "self_sym_numel"))
    return math.prod(sizes[d] for d in dims(node, len(sizes))) if sizes else 1


def _max_pool(node: Any) -> Operation:
    """Each gradient goes to one input. Behind a ReLU the chosen ones are active more often."""
    given = saved(node, "self").detach()
    before = node.next_functions[0][0]
    factor = 1.0
    if before is not None and before.name().startswith("ReluBackward"):
        active = float(torch.count_nonzero(given)) / max(given.numel(), 1)
        index = saved(node, "result1")
        flat = given.flatten(-(index.dim() - 2)) if index.dim() > 2 else given
        chosen = flat.gather(-1, index.flatten(-(index.dim() - 2)))
        share = float(torch.count_nonzero(chosen)) / max(chosen.numel(), 1)
        factor = share / active if active else 0.0
    return Operation((factor,), "max pool", keeps_channels=same_channels(node))


def _resample(node: Any) -> Operation:
    """A fixed linear map: its mean squared row norm, from white noise."""
    made = node._input_metadata[0]  # noqa: SLF001 - autograd has no public name for it
    generator = torch.Generator().manual_seed(0)
    before = after = 0.0
    while before < _NOISE:  # in squares of unit variance: how many elements were drawn
        noise = torch.randn(tuple(made.shape), generator=generator, device="cpu").to(
            made.device, made.dtype
        )
        back = node(noise)
        back = back[0] if isinstance(back, tuple) else back
        before += mean_square(noise) * noise.numel()
        after += mean_square(back) * back.numel()
    return Operation((after / before,), "resample", keeps_channels=same_channels(node))


def _join(node: Any) -> Operation:
    """Concatenation and stacking: each part gets its share of the gradient."""
    shape = output_shape(node)
    parts = [
        () if n is None or hasattr(n, "variable") else output_shape(n, i)
        for n, i in node.next_functions
    ]
    factors = tuple(math.prod(part) / math.prod(shape) if part else 0.0 for part in parts)
    stacked = node.name().startswith("Stack")
    if stacked or not all(parts) or dims(node, len(shape)) != [1]:
        return Operation(factors, keeps_positions=not stacked)
    ends = list(itertools.accumulate(part[1] for part in parts))
    mixes = tuple(_section(end - part[1], end) for part, end in zip(parts, ends, strict=True))
    return Operation(factors, keeps_positions=True, mixes=mixes, channels=shape[1])


def _section(start: int, end: int) -> Mix:
    return lambda channels: channels[start:end]


def _crop(node: Any) -> Operation:
    """Padding: the gradient on the padded border is lost. Cropping loses none."""
    source, index = node.next_functions[0]
    share = math.prod(output_shape(source, index)) / math.prod(output_shape(node))
    return Operation((min(share, 1.0),), keeps_channels=same_channels(node))


_RESAMPLING = (
    "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D",
    "AvgPool2D",
    "AvgPool3D",
    "Col2Im",
    "Im2Col",
    "ReflectionPad1D",
    "ReflectionPad2D",
    "ReplicationPad1D",
    "ReplicationPad2D",
    "UpsampleBicubic2D",
    "UpsampleBilinear2D",
    "UpsampleLinear1D",
    "UpsampleNearest1D",
    "UpsampleNearest2D",
    "UpsampleNearest3D",
    "UpsampleTrilinear3D",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVING, _move),
    **dict.fromkeys(PERMUTING, _permute),
    **dict.fromkeys(_RESAMPLING, _resample),
    **dict.fromkeys(("Cat", "Stack"), _join),
    **dict.fromkeys(("MaxPool2DWithIndices", "MaxPool3DWithIndices"), _max_pool),
    "ConstantPadNd": _crop,
    "Mean": _mean,
    "Sum": _sum,
}
