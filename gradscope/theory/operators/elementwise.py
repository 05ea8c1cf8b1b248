"""Rules for operations that treat every element by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.flux import Operation
from gradscope.theory.operators.nodes import Rule, carries, mean_square, per_element, saved


def _elementwise_move(node: Any) -> Operation:
    return per_element((1.0,) * len(node.next_functions))


def _add(node: Any) -> Operation:
    alpha = saved(node, "alpha")
    scale = 1.0 if alpha is None else mean_square(alpha)  # adding a number saves none
    summed = all(n is not None and not hasattr(n, "variable") for n, _ in node.next_functions)
    label = "sum" if summed and len(node.next_functions) > 1 else ""
    return per_element((1.0, scale), label)


def _multiply(node: Any) -> Operation:
    on, by = carries(node)[0], carries(node)[-1] and len(node.next_functions) > 1
    factors = (
        mean_square(saved(node, "other")) if on else 0.0,
        mean_square(saved(node, "self")) if by else 0.0,
    )
    return per_element(factors, "product")


def _divide(node: Any) -> Operation:
    numerator, divisor = saved(node, "self"), saved(node, "other")
    own = mean_square(divisor.float().reciprocal() if isinstance(divisor, Tensor) else 1 / divisor)
    by = carries(node)[-1] and len(node.next_functions) > 1 and numerator is not None
    other = mean_square(numerator / divisor**2) if by else 0.0
    return per_element((own, other), "product")


def _elementwise(node: Any) -> Operation:
    """Any activation: the mean square of its slope, where the forward pass was."""
    at = saved(node, "result")
    at = saved(node, "self") if at is None else at
    slope = node(torch.ones_like(at))
    slope = slope[0] if isinstance(slope, tuple) else slope
    return per_element((mean_square(slope),), "activation")


def _relu(node: Any) -> Operation:
    result = saved(node, "result").detach()
    active = float(torch.count_nonzero(result)) / max(result.numel(), 1)
    finite = math.isfinite(float(result.sum(dtype=torch.float32)))
    return per_element((active if finite else math.nan,), "activation")


def _masked(node: Any) -> Operation:
    share = float(saved(node, "mask").float().mean())
    return Operation((1.0 - share, share), "product")


def _where(node: Any) -> Operation:
    share = float(saved(node, "condition").float().mean())
    factors = (share, 1.0 - share)
    return Operation((0.0, *factors) if len(node.next_functions) == 3 else factors, "product")


def _dropout(node: Any) -> Operation:
    return per_element((1.0 / (1.0 - saved(node, "p")),), "product")


_ACTIVATIONS = (
    "Abs",
    "Atan",
    "Celu",
    "Clamp",
    "ClampMax",
    "ClampMin",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyRelu",
    "Log",
    "LogSigmoid",
    "Mish",
    "Pow",
    "PreluKernel",
    "Reciprocal",
    "Rsqrt",
    "RreluWithNoise",
    "Sigmoid",
    "Silu",
    "Sin",
    "Softplus",
    "Softshrink",
    "Sqrt",
    "Tanh",
    "Threshold",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ACTIVATIONS, _elementwise),
    **dict.fromkeys(("Clone", "Neg", "ToCopy"), _elementwise_move),
    **dict.fromkeys(("Add", "Rsub", "Sub"), _add),
    "Div": _divide,
    "MaskedFill": _masked,
    "Mul": _multiply,
    "NativeDropout": _dropout,
    "Relu": _relu,
    "Where": _where,
}
