"""The table of theory: closed forms against quadrature of scipy, and both against measurement.

Measured with plain autograd on random networks, without the recorder. A layer's factor is the root
of the ratio of squared gradient norms over the depth; the tolerance is four standard deviations of
the finite-width law (1801.03744) for the number of seeds, unless a test says otherwise.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erf
from scipy.stats import norm
from torch import nn

from gradscope.theory import meanfield

SEEDS = range(6)


def gradient_norms(layers, x, seed):
    """Norm of dL/d(output of each layer) for a random linear functional L of the last."""
    outputs = []
    for layer in layers:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    generator = torch.Generator().manual_seed(seed)
    (x * torch.randn(x.shape, generator=generator)).sum().backward()
    return [float(y.grad.double().norm()) for y in outputs]


def log_factors(make_layer, x_shape, depth, *, skip=0, seeds=SEEDS):
    """Mean over seeds of ln of the factor on the norm per layer, and its standard error."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        norms = gradient_norms([make_layer() for _ in range(depth)], torch.randn(x_shape), seed)
        norms = norms[: len(norms) - skip]
        found.append(math.log(norms[0] / norms[-1]) / (len(norms) - 1))
    found = torch.tensor(found)
    return float(found.mean()), float(found.std() / math.sqrt(len(found)))


def linear(width, weight_variance, *after, bias_variance=0.0):
    """A linear layer with Var w = weight_variance / fan_in, and what follows it."""
    layer = nn.Linear(width, width)
    nn.init.normal_(layer.weight, std=math.sqrt(weight_variance / width))
    nn.init.normal_(layer.bias, std=math.sqrt(bias_variance))
    return nn.Sequential(layer, *after)


def finite_width_tolerance(width, depth, sigmas=4.0):
    """Four standard errors of ln(factor per layer), plus the mean shift, at this width."""
    law = meanfield.finite_width([width] * depth)
    spread = math.sqrt(law.variance) / 2 / depth / math.sqrt(len(SEEDS))
    return sigmas * spread + abs(law.mean) / 2 / depth


@pytest.mark.parametrize("std", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize(
    ("phi", "slope"),
    [
        (torch.tanh, lambda x: 1 - math.tanh(x) ** 2),
        (torch.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-(x**2))),
        (nn.functional.gelu, lambda x: norm.cdf(x) + x * norm.pdf(x)),
        (torch.sigmoid, lambda x: 1 / (1 + math.exp(-x)) / (1 + math.exp(x))),
    ],
    ids=["tanh", "erf", "gelu", "sigmoid"],
)
def test_derivative_moment_is_the_integral(phi, slope, std):
    """E[phi'(std z)^2] agrees with adaptive quadrature of the hand-written derivative."""
    expected, _ = quad(lambda z: slope(std * z) ** 2 * norm.pdf(z), -9, 9, limit=200)
    assert meanfield.derivative_moment(phi, std) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("std", [0.2, 1.0, 2.5])
def test_moments_with_jumps_in_the_slope(std):
    """A clipped unit passes P(|x| < 1) of the gradient, a rectifier exactly one half."""
    inside = erf(1 / std / math.sqrt(2))
    assert meanfield.derivative_moment(nn.functional.hardtanh, std) == pytest.approx(
        inside, abs=1e-3
    )
    assert meanfield.derivative_moment(torch.relu, std) == pytest.approx(0.5, abs=1e-9)
    assert meanfield.value_moment(torch.relu, std) == pytest.approx(std**2 / 2, rel=1e-5)


def test_erf_has_a_closed_form():
    """E[erf'(s z)^2] = 4 / (pi sqrt(1 + 4 s^2)) (Williams 1997), for several s."""
    for s in (0.3, 1.0, 2.0):
        expected = 4 / (math.pi * math.sqrt(1 + 4 * s**2))
        assert meanfield.derivative_moment(torch.erf, s) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("weight_variance", "expected"), [(1.0, 0.75903), (1.5, 0.93864), (2.5, 1.13352)]
)
def test_chi_1_of_tanh(weight_variance, expected):
    """chi_1 of tanh with sb^2 = 0.05 at three weight variances (1611.01232)."""
    assert meanfield.chi_1(torch.tanh, weight_variance, 0.05) == pytest.approx(expected, abs=1e-4)


def test_critical_variance_of_tanh():
    """The edge of chaos of tanh with sb^2 = 0.05 lies at sw^2 = 1.76095."""
    found = meanfield.critical_weight_variance(torch.tanh, 0.05)
    assert found == pytest.approx(1.76095, abs=1e-4)


@pytest.mark.parametrize(
    ("phi", "expected"),
    [(torch.relu, 2.0), (torch.tanh, 1.0), (torch.erf, math.pi / 4), (nn.Identity(), 1.0)],
    ids=["relu", "tanh", "erf", "linear"],
)
def test_critical_variance_without_bias(phi, expected):
    """Without bias, the edge of chaos is 1 / phi'(0)^2 for odd phi, and He's 2 for ReLU."""
    assert meanfield.critical_weight_variance(phi) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=15)
@given(st.floats(1.1, 4.0), st.floats(0.0, 0.5))
def test_fixed_point_is_fixed(weight_variance, bias_variance):
    """q* is where the variance map of tanh meets the diagonal."""
    q = meanfield.fixed_point(torch.tanh, weight_variance, bias_variance)
    moment, _ = quad(lambda z: math.tanh(math.sqrt(q) * z) ** 2 * norm.pdf(z), -9, 9)
    assert weight_variance * moment + bias_variance == pytest.approx(q, rel=1e-6)


def test_variance_without_bound():
    """Above He's variance a ReLU network has no fixed point, and chi_1 says so."""
    assert meanfield.fixed_point(torch.relu, 2.5) == math.inf
    assert meanfield.chi_1(torch.relu, 2.5) == math.inf
    assert meanfield.chi_1(torch.relu, 2.5, q=1.0) == pytest.approx(1.25)


def test_closed_forms():
    """The rows of the table that are arithmetic."""
    assert meanfield.rectifier(2.0) == pytest.approx(1.0)
    assert meanfield.rectifier(1.0) == pytest.approx(0.7071, abs=1e-4)
    assert meanfield.rectifier(1 / 3) == pytest.approx(math.sqrt(1 / 6))
    assert meanfield.rectifier(2 / (1 + 0.2**2), 0.2) == pytest.approx(1.0)
    assert meanfield.batch_norm() == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), abs=1e-5)
    assert meanfield.layer_norm() == pytest.approx(1.0, abs=1e-5)
    assert meanfield.residual() == pytest.approx(math.sqrt(2))
    assert meanfield.residual(0.0) == 1.0
    assert meanfield.finite_width([2.0] * 10) == pytest.approx((-12.5, 25.0))


@pytest.mark.parametrize(("size", "expected"), [(4, 0.762), (8, 0.921), (16, 0.977)])
def test_zero_padding_of_3x3(size, expected):
    """The eigenvalue of the band matrix is the cosine of the derivation."""
    cosine = ((1 + 2 * math.cos(math.pi / (size + 1))) / 3) ** 2
    assert meanfield.zero_padding((size, size)) == pytest.approx(cosine, abs=1e-9)
    assert cosine == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("weight_variance", [2.0, 1.0, 1 / 3], ids=["he", "glorot", "torch"])
def test_rectifier_measured(weight_variance):
    """ReLU networks lose the factor of the closed form per layer."""
    width, depth = 300, 10
    found, _ = log_factors(lambda: linear(width, weight_variance, nn.ReLU()), (8, width), depth)
    expected = math.log(meanfield.rectifier(weight_variance))
    assert found == pytest.approx(expected, abs=finite_width_tolerance(width, depth))


@pytest.mark.parametrize("weight_variance", [1.0, 1.5, 2.5])
def test_tanh_measured(weight_variance):
    """Tanh networks with sb^2 = 0.05 change by sqrt(chi_1) per layer, at the fixed point."""
    width, depth = 300, 24

    def layer():
        return linear(width, weight_variance, nn.Tanh(), bias_variance=0.05)

    # The first layers are still on the way to q*: they are left out by a start at q*.
    q = meanfield.fixed_point(torch.tanh, weight_variance, 0.05)
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        start = torch.tanh(torch.randn(8, width) * math.sqrt(q))
        norms = gradient_norms([layer() for _ in range(depth)], start, seed)
        found.append(math.log(norms[0] / norms[-1]) / (depth - 1))
    expected = math.log(meanfield.chi_1(torch.tanh, weight_variance, 0.05)) / 2
    tolerance = finite_width_tolerance(width, depth)
    assert sum(found) / len(found) == pytest.approx(expected, abs=tolerance)


def test_batch_norm_measured():
    """BN and ReLU without skips grow by sqrt(pi / (pi - 1)) per layer, whatever the weights."""
    width, depth = 200, 12
    for weight_variance in (0.1, 2.0):
        found, _ = log_factors(
            lambda: linear(width, weight_variance, nn.BatchNorm1d(width), nn.ReLU()),  # noqa: B023 - used at once
            (256, width),
            depth,
            seeds=range(3),
        )
        # A finite batch is off by its sampling error: 1.5 % at 256 samples.
        assert found == pytest.approx(math.log(meanfield.batch_norm()), abs=0.02)


def test_layer_norm_measured():
    """Layer norm and ReLU keep the gradient, as He's initialisation does."""
    width, depth = 300, 10
    found, _ = log_factors(
        lambda: linear(width, 0.5, nn.LayerNorm(width), nn.ReLU()), (8, width), depth
    )
    tolerance = finite_width_tolerance(width, depth)
    assert found == pytest.approx(math.log(meanfield.layer_norm()), abs=tolerance)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_residual_measured(scale):
    """A block x + scale * f(x), f preserving variance, grows by sqrt(1 + scale^2)."""
    width, depth = 300, 10

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.ReLU(), linear(width, 2.0))

        def forward(self, x):
            return x + scale * self.branch(x)

    found, _ = log_factors(Block, (8, width), depth)
    expected = math.log(meanfield.residual(scale))
    tolerance = finite_width_tolerance(width, depth) if scale else 1e-7
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("size", [4, 8])
def test_zero_padding_measured(size):
    """A deep chain of padded linear convolutions loses the eigenvalue per layer."""
    channels, depth = 48, 24

    def layer():
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(1 / (9 * channels)))
        return conv

    # The profile over positions settles in the layers nearest to the output: left out.
    found, error = log_factors(layer, (4, channels, size, size), depth, skip=6)
    expected = math.log(meanfield.zero_padding((size, size))) / 2
    assert found == pytest.approx(expected, abs=max(4 * error, 0.01))


def test_finite_width_measured():
    """The log of the squared norm has the mean and variance of the log-normal law, at b = 2.5."""
    width, depth, draws = 40, 20, 300
    logs = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        g = torch.randn(width, generator=generator, dtype=torch.float64)
        x = torch.randn(width, generator=generator, dtype=torch.float64)
        start = g.square().sum().log()
        weights = [
            torch.randn(width, width, generator=generator, dtype=torch.float64)
            * math.sqrt(2 / width)
            for _ in range(depth)
        ]
        gates = []
        for weight in weights:
            x = weight @ x
            gates.append(x > 0)
            x = x * gates[-1]
        for weight, gate in zip(reversed(weights), reversed(gates), strict=True):
            g = weight.T @ (g * gate)
        logs.append(float(g.square().sum().log() - start))
    logs = torch.tensor(logs)
    law = meanfield.finite_width([width] * depth)
    assert law.variance == pytest.approx(2.5)
    assert float(logs.var()) == pytest.approx(law.variance, rel=0.3)
    assert float(logs.mean()) == pytest.approx(law.mean, abs=4 * math.sqrt(2.5 / draws))
