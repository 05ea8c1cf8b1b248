"""Mean-field results on signal and gradient propagation: closed forms, and quadrature for the rest.

Two quantities appear. ``chi_1`` is the factor on the *squared* gradient norm per layer, going
backwards; its square root is the factor on the norm, which the rest of gradscope calls chi.
Sources: 1606.05340 and 1611.01232 (chi_1), 1502.01852 (rectifiers), 1902.08129 (batch norm),
2002.10444 and 1901.09321 (residual networks), 1801.03744 (finite width).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

_REACH = 10.0
"""Standard deviations covered by the quadrature; the Gaussian weight beyond is below 1e-22."""

_NODES = 4_000
"""The midpoint rule converges exponentially for analytic integrands under a Gaussian weight, and
is off by at most 1e-3 at a jump of height 1, such as the slope of a clipped unit, where
Gauss-Hermite nodes are so far apart that they err in the second digit."""

_MAX_ITERATIONS = 500
_SMALLEST_VARIANCE = 1e-12
_DIVERGED = 1e12


class LogNormal(NamedTuple):
    """Mean and variance of the logarithm of a positive quantity."""

    mean: float
    variance: float


def gaussian_mean(f: Activation, std: float = 1.0, mean: float = 0.0) -> float:
    """E[f(mean + std z)] over a standard normal z, by quadrature.

    Args:
        f: elementwise function of a float64 tensor.
        std: standard deviation of the argument, >= 0.
        mean: mean of the argument.

    Returns:
        The expectation; error below 1e-9 for smooth f, below 1e-3 for f with jumps.
    """
    z, weight = _grid()
    return float((weight * f(mean + std * z)).sum())


def value_moment(phi: Activation, std: float = 1.0, mean: float = 0.0) -> float:
    """E[phi(mean + std z)^2]: the second moment that an activation passes on."""
    return gaussian_mean(lambda x: phi(x).square(), std, mean)


def derivative_moment(phi: Activation, std: float = 1.0, mean: float = 0.0) -> float:
    """E[phi'(mean + std z)^2]: the factor of an activation on the squared gradient norm."""

    def squared_slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(phi(x).sum(), x)
        return slope.square()

    return gaussian_mean(squared_slope, std, mean)


def fixed_point(phi: Activation, weight_variance: float, bias_variance: float = 0.0) -> float:
    """q*, the variance of pre-activations that depth converges to.

    Iterates q <- sw^2 E[phi(sqrt(q) z)^2] + sb^2 from q = 1 (1606.05340, eq. 3), with Aitken's
    extrapolation, since convergence is only algebraic at the edge of chaos.

    Args:
        phi: activation, elementwise on float64.
        weight_variance: sw^2 = fan_in * Var w.
        bias_variance: sb^2 = Var b.

    Returns:
        q*, at least 1e-12; inf where the variance grows without bound.
    """

    def following(q: float) -> float:
        return weight_variance * value_moment(phi, math.sqrt(q)) + bias_variance

    q = 1.0
    for _ in range(_MAX_ITERATIONS):
        first = following(q)
        second = following(first) if first < _DIVERGED else math.inf
        if not second < _DIVERGED:
            return math.inf
        if abs(second - first) <= 1e-10 * first or second < _SMALLEST_VARIANCE:
            return max(second, _SMALLEST_VARIANCE)
        curvature = second - 2.0 * first + q
        ahead = q - (first - q) ** 2 / curvature if curvature else second
        between = min(second, q) / 100.0 < ahead < 100.0 * max(second, q)
        q = ahead if between and (ahead - first) * (second - first) > 0 else second
    return q


def chi_1(
    phi: Activation,
    weight_variance: float,
    bias_variance: float = 0.0,
    *,
    q: float | None = None,
) -> float:
    """Factor on the squared gradient norm per layer: sw^2 E[phi'(sqrt(q) z)^2] (1611.01232).

    Args:
        phi: activation, elementwise on float64.
        weight_variance: sw^2 = fan_in * Var w.
        bias_variance: sb^2 = Var b.
        q: variance of the pre-activations; None: the fixed point.

    Returns:
        chi_1, dimensionless: below 1 gradients vanish, above 1 they explode, going backwards.
    """
    if q is None:
        q = fixed_point(phi, weight_variance, bias_variance)
    return weight_variance * derivative_moment(phi, math.sqrt(q)) if q < math.inf else math.inf


def critical_weight_variance(phi: Activation, bias_variance: float = 0.0) -> float:
    """sw^2 = fan_in * Var w at which chi_1 is 1: the edge of chaos.

    Args:
        phi: activation, elementwise on float64.
        bias_variance: sb^2 = Var b.

    Returns:
        The critical sw^2, by bisection; inf where chi_1 stays below 1 up to 1e4.
    """
    low, high = 1e-4, 1.0
    while chi_1(phi, high, bias_variance) < 1.0:
        low, high = high, 2.0 * high
        if high > 1e4:
            return math.inf
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if chi_1(phi, middle, bias_variance) < 1.0 else (low, middle)
    return (low + high) / 2


def rectifier(weight_variance: float, negative_slope: float = 0.0) -> float:
    """Factor on the gradient norm of a layer with (leaky) ReLU: sqrt(sw^2 (1 + a^2) / 2).

    Args:
        weight_variance: sw^2 = fan_in * Var w; 2 for He, 1 for square Glorot, 1/3 for the default
            initialisation of torch.
        negative_slope: a; 0 is ReLU.

    Returns:
        1, 0.7071 and 0.4082 for the three (1502.01852), for a = 0.
    """
    return math.sqrt(weight_variance * (1.0 + negative_slope**2) / 2.0)


def batch_norm(phi: Activation = torch.relu) -> float:
    """Factor on the gradient norm of linear, batch norm, phi, whatever the weights' variance.

    sqrt(E[phi'(z)^2] / Var[phi(z)]) at large batch; sqrt(pi / (pi - 1)) for ReLU (1902.08129).
    """
    variance = value_moment(phi) - gaussian_mean(phi) ** 2
    return math.sqrt(derivative_moment(phi) / variance)


def layer_norm(phi: Activation = torch.relu) -> float:
    """Factor on the gradient norm of linear, layer norm, phi, whatever the weights' variance.

    sqrt(E[phi'(z)^2] / E[phi(z)^2]): statistics over the units of one sample keep the mean of phi,
    which random weights turn into variance; 1 for ReLU (the argument of 1902.08129).
    """
    return math.sqrt(derivative_moment(phi) / value_moment(phi))


def residual(branch: float = 1.0) -> float:
    """Factor on the gradient norm of x + f(x): sqrt(1 + branch^2).

    Args:
        branch: factor of f alone; 1 preserves variance and gives sqrt(2), 0 is SkipInit
            (2002.10444).
    """
    return math.sqrt(1.0 + branch**2)


def zero_padding(sizes: Sequence[int], kernel: int = 3) -> float:
    """Factor on the squared gradient norm of a deep chain of zero-padded convolutions.

    Units at the border have fewer weights. Per dimension the factor is the largest eigenvalue of
    the band matrix of ones that says which output sees which input, over the kernel's size;
    for a kernel of 3 that is (1 + 2 cos(pi / (size + 1))) / 3.

    Args:
        sizes: height and width, or however many spatial dimensions there are.
        kernel: odd size of the kernel; padding keeps the size.

    Returns:
        The product over dimensions, below 1.
    """
    factor = 1.0
    for size in sizes:
        index = torch.arange(size, dtype=torch.float64, device="cpu")
        seen = ((index[:, None] - index).abs() <= kernel // 2).double()
        factor *= float(torch.linalg.eigvalsh(seen)[-1]) / kernel
    return factor


def finite_width(widths: Iterable[float]) -> LogNormal:
    """Spread of a squared gradient norm over random ReLU networks of finite width.

    ln of the squared norm, over its value at infinite width, is about N(-b/2, b) with
    b = 5 * sum(1 / n_l) (1801.03744).

    Args:
        widths: n_l, units of each layer.
    """
    b = 5.0 * sum(1.0 / width for width in widths)
    return LogNormal(-b / 2.0, b)


@functools.cache
def _grid() -> tuple[Tensor, Tensor]:
    step = 2.0 * _REACH / _NODES
    reach = _REACH - step / 2
    z = torch.linspace(-reach, reach, _NODES, dtype=torch.float64, device="cpu")
    weight = torch.exp(-z.square() / 2) * (step / math.sqrt(2.0 * math.pi))
    return z, weight
