"""Rules for matrix products and convolutions: fan_in times the variance of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.flux import Operation
from gradscope.theory.operators.nodes import Rule, carries, mean_square, output_shape, saved


def _affine(node: Any) -> Operation:
    """addmm(bias, a, b) and mm(a, b): the factor on a is |b|_F^2 / columns of b = fan_in Var w."""
    a: Tensor | None = saved(node, "mat1")
    b: Tensor | None = saved(node, "mat2")
    a = saved(node, "self") if a is None else a
    on, by = carries(node)[-2:]
    scale = saved(node, "alpha")
    scale = 1.0 if scale is None else mean_square(scale)
    factors = (
        product_factor(b, -1) * scale if on else 0.0,
        product_factor(a, -2) * scale if by else 0.0,
    )
    width = math.inf if by or b is None else float(b.shape[0])
    before = len(node.next_functions) - 2
    if by or b is None:
        return Operation(((0.0,) * before) + factors, "linear", width)
    weight = b

    def mix(features: Tensor) -> Tensor:
        return weight.detach().float().square().cpu() @ features * scale

    return Operation(
        ((0.0,) * before) + factors,
        "linear",
        width,
        mixes=(mix,) * (before + 2),
        channels=weight.shape[1],
    )


def _batched_product(node: Any) -> Operation:
    on, by = carries(node)
    first, second = saved(node, "self"), saved(node, "mat2")
    return Operation(
        (product_factor(second, -1) if on else 0.0, product_factor(first, -2) if by else 0.0),
        "linear",
    )


def product_factor(other: Tensor | None, contracted: int) -> float:
    """Factor of a matrix product on one operand: |other|_F^2 / size summed over backwards."""
    if other is None:
        return math.nan
    return mean_square(other) * other.shape[-1] * other.shape[-2] / other.shape[contracted]


def _convolution(node: Any) -> Operation:
    weight: Tensor = saved(node, "weight")
    transposed, groups = saved(node, "transposed"), saved(node, "groups")
    taps = math.prod(weight.shape[2:])
    fan_in = taps * (weight.shape[0] // groups if transposed else weight.shape[1])
    if node.next_functions[0][0] is None:
        return Operation((0.0,), "linear", fan_in)
    given = saved(node, "input")

    def spread(positions: Tensor) -> Tensor:
        return _adjoint(positions, node, tuple(weight.shape[2:]), tuple(given.shape[2:]))

    def mix(channels: Tensor) -> Tensor:
        squares = weight.detach().float().square().flatten(2).sum(2).cpu()
        by_group = channels.view(groups, -1, 1)
        if transposed:  # weight is (in, out / groups, ...)
            return (squares.view(groups, -1, squares.shape[1]) @ by_group).flatten()
        return (squares.view(groups, -1, squares.shape[1]).mT @ by_group).flatten()

    shape = output_shape(node)
    return Operation(
        (mean_square(weight) * fan_in,),
        "linear",
        fan_in,
        sizes=shape[2:],
        spread=spread,
        mixes=(mix,),
        mixes_evenly=groups == 1,
        channels=shape[1],
    )


def _adjoint(
    positions: Tensor, node: Any, kernel: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """The map of squared gradients behind a convolution: its adjoint with a kernel of means."""
    stride, padding = saved(node, "stride"), saved(node, "padding")
    dilation = saved(node, "dilation")
    ones = positions.new_ones(1, 1, *kernel) / math.prod(kernel)
    grid = zip(size, positions.shape, stride, padding, dilation, kernel, strict=True)
    if saved(node, "transposed"):
        rest = [0] * len(kernel)
        back = False
    else:
        rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in grid]
        back = True
    spread = torch.convolution(
        positions[None, None], ones, None, stride, padding, dilation, back, rest, 1
    )
    return spread[0, 0]


RULES: dict[str, Rule] = {
    "Addmm": _affine,
    "Bmm": _batched_product,
    "Convolution": _convolution,
    "Mm": _affine,
}
