"""Changes to a network do what they say, and refuse where there is nothing to do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradscope import layers, probe
from gradscope.probing import surgery


def traced(model, *shape):
    """The model and a trace of it."""
    return model, probe(model, torch.randn(*shape), predict=False)


def plain(norm=None, depth=4, width=64):
    """A chain of linear layers, optionally normalised."""
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([norm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


@pytest.mark.parametrize(
    ("draw", "variance"),
    [
        (surgery.kaiming, 2 / 200),
        (surgery.xavier, 2 / (200 + 300)),
        (surgery.orthogonal(math.sqrt(2)), 2 / 300),  # 200 orthonormal columns of length 300
    ],
)
def test_initialisation_has_its_variance(draw, variance):
    """Weights have the variance of the formula; biases are zero."""
    model, trace = traced(nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 2)), 4, 200)
    surgery.initialise(model, trace, draw)
    assert float(model[0].weight.detach().var()) == pytest.approx(variance, rel=0.05)
    assert not model[0].bias.any()


def test_kaiming_of_a_transposed_convolution():
    """The fan of a transposed convolution is its input channels times its kernel."""
    model, trace = traced(nn.Sequential(nn.Conv2d(3, 64, 1), nn.ConvTranspose2d(64, 32, 4)),
                          2, 3, 8, 8)  # fmt: skip
    surgery.initialise(model, trace, surgery.kaiming)
    assert float(model[1].weight.detach().var()) == pytest.approx(2 / (64 * 16), rel=0.05)


def test_critical_initialisation():
    """Tanh wants variance 1 / fan_in; a mixture of activations has no one critical variance."""
    model, trace = traced(nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 2)), 3, 100)
    surgery.initialise(model, trace, surgery.critical(model))
    assert float(model[0].weight.detach().var()) == pytest.approx(1 / 100, rel=0.06)
    with pytest.raises(surgery.NotApplicable, match="several kinds"):
        surgery.critical(nn.Sequential(nn.Tanh(), nn.GELU()))
    with pytest.raises(surgery.NotApplicable, match="no smooth activation"):
        surgery.critical(nn.Sequential(nn.ReLU()))


def test_initialisation_is_no_remedy_behind_norms():
    """Where a norm cancels the scale of every layer, drawing weights changes nothing."""
    model, trace = traced(plain(nn.BatchNorm1d), 8, 64)
    with pytest.raises(surgery.NotApplicable, match="cancels the scale"):
        surgery.initialise(model, trace, surgery.kaiming)


def test_unit_variance():
    """After it, every layer's output has standard deviation 1 on that batch."""
    model, trace = traced(plain(), 32, 64)
    x = torch.randn(32, 64)
    surgery.unit_variance(model, trace, lambda m: m(x))
    for i, layer in enumerate(model):
        x = layer(x)
        if i % 2 == 0:
            assert float(x.detach().std()) == pytest.approx(1.0, rel=1e-3)
    assert not any(m._forward_hooks for m in model)


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRUCell])
def test_orthogonal_recurrence(cell):
    """Each gate's hidden-to-hidden matrix is orthogonal."""
    module = cell(3, 8)
    surgery.orthogonal_recurrence(module, None)
    weight = next(p for n, p in module.named_parameters() if n.startswith("weight_hh"))
    for gate in weight.split(8):
        assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("over", "kinds"),
    [("batch", (nn.BatchNorm2d, nn.BatchNorm1d)), ("layer", (nn.GroupNorm, nn.LayerNorm))],
)
def test_normalisation_goes_behind_each_layer_but_the_last(over, kinds):
    """Convolutions and linear layers get theirs, the logits none, and the network runs."""
    model, trace = traced(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 7), nn.Linear(7, 2)),
        4, 3, 4, 4,
    )  # fmt: skip
    surgery.normalise(model, trace, over=over)
    assert isinstance(model[0][1], kinds[0])
    assert isinstance(model[2][1], kinds[1])
    assert isinstance(model[3], nn.Linear)
    assert model(torch.randn(4, 3, 4, 4)).shape == (4, 2)
    _, again = traced(model, 4, 3, 4, 4)
    with pytest.raises(surgery.NotApplicable, match="every layer but the last"):
        surgery.normalise(model, again, over=over)


def test_skips_and_scaled_branches():
    """X + s f(x), and x + s (f(x) - x) where f has a skip, by arithmetic."""
    inner = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    model = nn.Sequential(inner)
    surgery.add_skips(model, ["0"], scale=0.5)
    assert torch.allclose(model(x), x + 0.5 * inner(x))
    model = nn.Sequential(*(surgery.Residual(nn.Linear(3, 3), 1.0, has_skip=False),) * 1, inner)
    branch = model[0].inner
    with pytest.raises(surgery.NotApplicable, match="fewer than two"):
        surgery.scale_residuals(model, ["0"])
    model = nn.Sequential(model[0], surgery.Residual(inner, 1.0, has_skip=False))
    surgery.scale_residuals(model, ["0", "1"])
    s = 1 / math.sqrt(2)
    first = x + s * branch(x)
    assert torch.allclose(model(x), first + s * inner(first), atol=1e-6)


def test_activations_are_swapped_wherever_they_are():
    """Modules of the old types are replaced at any depth; without any, a reason is given."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Sigmoid()), nn.Tanh())
    surgery.swap_activations(model, layers.SATURATING, nn.ReLU)
    assert isinstance(model[1][0], nn.ReLU)
    assert isinstance(model[2], nn.ReLU)
    with pytest.raises(surgery.NotApplicable, match="no activation module of type Sigmoid"):
        surgery.swap_activations(model, layers.SATURATING, nn.ReLU)
