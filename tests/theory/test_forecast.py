"""Predictions against gradients measured by plain autograd, on networks of many kinds.

The measurement hooks module outputs itself and knows nothing of the recorder.
"""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from gradscope.models.hw5net import HW5Net
from gradscope.nested import tensors_in
from gradscope.probing.isolation import call_model, preserved
from gradscope.theory import Forecast, meanfield
from gradscope.trace.structure import Block


def predict(model, inputs, blocks=None):
    """The forecast from one forward pass, as a probe reads it."""
    with preserved(model), Forecast(model) as forecast:
        forecast.read(call_model(model, inputs))
    return forecast.predictions(blocks)


def measured(model, x, names, draws=1):
    """Mean over random linear losses of ln norm(dL/d output), by name of the module."""
    logs = dict.fromkeys(names, 0.0)

    def watch(name):
        def add(grad):
            logs[name] += math.log(float(grad.double().norm())) / draws

        def hook(_module, _args, output):
            tensors_in(output)[0].register_hook(add)

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    for draw in range(draws):
        out = model(x)
        generator = torch.Generator().manual_seed(draw)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
    for handle in handles:
        handle.remove()
    return logs


def blocks_of(names):
    """Blocks that end at the outputs of these modules."""
    return [Block(name, "", (name,), name, 0, is_cut=True) for name in names]


def errors(model, x, names, draws=1):
    """ln(measured / predicted chi) per block, with the predicted standard deviation."""
    logs = measured(model, x, names, draws)
    predictions = predict(model, x, blocks_of(names))
    assert [p.module for p in predictions] == list(names)
    assert math.isnan(predictions[0].chi)
    found = []
    for before, here in zip(names, predictions[1:], strict=False):
        assert here.chi > 0, here.reason
        found.append((logs[before] - logs[here.module] - math.log(here.chi), here.log_std))
    return found


def chain(depth, width, weight_variance, *after):
    """Linear layers of Var w = weight_variance / width, each followed by what `after` makes."""
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=math.sqrt(weight_variance / width))
        layers.append(nn.Sequential(linear, *(make() for make in after)))
    return nn.Sequential(*layers)


def per_layer(model, x):
    """Geometric mean of the predicted chi."""
    chi = [p.chi for p in predict(model, x, blocks_of([str(i) for i in range(len(model))]))][1:]
    return math.exp(sum(math.log(c) for c in chi) / len(chi))


@pytest.mark.parametrize(
    ("weight_variance", "after", "batch", "expected"),
    [
        (2.0, (nn.ReLU,), 64, meanfield.rectifier(2.0)),
        (1.0, (nn.ReLU,), 64, meanfield.rectifier(1.0)),
        (1 / 3, (nn.ReLU,), 64, math.sqrt(1 / 6)),
        (0.3, (lambda: nn.BatchNorm1d(256), nn.ReLU), 512, math.sqrt(math.pi / (math.pi - 1))),
        (0.3, (lambda: nn.LayerNorm(256), nn.ReLU), 64, 1.0),
        (1.0, (), 64, 1.0),
        (1.4, (lambda: nn.LeakyReLU(0.2),), 64, meanfield.rectifier(1.4, 0.2)),
    ],
    ids=["he", "glorot", "torch", "batch norm", "layer norm", "linear", "leaky"],
)
def test_predictions_are_the_closed_forms(weight_variance, after, batch, expected):
    """Read from a model, the rules give what the table gives, within 2 %."""
    model = chain(12, 256, weight_variance, *after)
    assert per_layer(model, torch.randn(batch, 256)) == pytest.approx(expected, rel=0.02)


def test_blocks_are_compared_with_the_one_before_where_the_trunk_is_the_minority():
    """Two cuts among eight linear layers: each is sqrt(1/2) of the one before, cut or not."""
    model = chain(8, 256, 1.0, nn.ReLU)
    blocks = [Block(str(i), "", (str(i),), str(i), 0, is_cut=i in (0, 7)) for i in range(8)]
    chi = [p.chi for p in predict(model, torch.randn(64, 256), blocks)]
    assert chi[1:] == pytest.approx([math.sqrt(1 / 2)] * 7, rel=0.05)


def test_residual_blocks_predicted():
    """sqrt(2) per block, and exactly 1 with the branch switched off, as SkipInit does."""

    class Block(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.linear = nn.Linear(256, 256, bias=False)
            nn.init.kaiming_normal_(self.linear.weight)
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, x):
            return x + self.scale * self.linear(torch.relu(x))

    for scale, expected, tolerance in ((1.0, math.sqrt(2), 0.02), (0.0, 1.0, 1e-12)):
        model = nn.Sequential(nn.Linear(256, 256), *(Block(scale) for _ in range(6)))
        assert per_layer(model, torch.randn(32, 256)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("size", [4, 8])
def test_zero_padding_predicted(size):
    """Deep inside a chain the map over positions has settled: the eigenvalue of the derivation."""
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(24)))
    predictions = predict(model, torch.randn(2, 8, size, size))
    variance = [float(conv.weight.detach().square().mean()) * 72 for conv in model]
    settled = [p.chi**2 / v for p, v in zip(predictions, variance, strict=True)][1:8]
    expected = meanfield.zero_padding((size, size))
    assert settled == pytest.approx([expected] * 7, rel=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("stride", "groups", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 4, 2)])
def test_one_convolution(transposed, stride, groups, dilation):
    """Over random weights, the mean squared gradient behind a convolution is the prediction."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    ratios, predicted = [], []
    for seed in range(30):
        torch.manual_seed(seed)
        conv = kind(8, 12, 3, stride, padding=1, groups=groups, dilation=dilation, bias=False)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), conv)
        x = torch.randn(2, 3, 9, 9)
        logs = measured(model, x, ("0", "1"))
        ratios.append(math.exp(2 * (logs["0"] - logs["1"])))
        predicted.append(predict(model, x)[1].chi ** 2)
    assert sum(ratios) == pytest.approx(sum(predicted), rel=0.05)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("init", ["default", "kaiming"])
def test_variants_of_the_reference_network(skip, batch_norm, init):
    """Every block of HW5Net within 95 % of its interval, and the whole within 0.1 decades."""
    torch.manual_seed(1)
    model = HW5Net(5, depth=32, skip=skip, batch_norm=batch_norm)
    if init == "kaiming":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
    names = [n for n, m in model.named_modules() if type(m).__name__ == "SkipBlock"]
    ran = []
    handles = [
        m.register_forward_hook(lambda m, *_, n=n: ran.append(n))
        for n, m in model.named_modules()
        if n in names
    ]
    x = torch.randn(4, 3, 64, 64)
    model(x)
    for handle in handles:
        handle.remove()
    found = errors(model, x, ran)
    assert all(abs(error) < 1.96 * std + 0.02 for error, std in found)
    assert abs(sum(error for error, _ in found)) < 0.1 * math.log(10)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", "layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0"),
        pytest.param(
            "convnext_tiny",
            "features.1 features.3 features.5 features.7",
            marks=pytest.mark.slow,
        ),
        ("mobilenet_v2", "features.1 features.2 features.3 features.5 features.9 features.15"),
        ("densenet121", "features.denseblock1 features.denseblock2 features.denseblock3"),
        ("regnet_y_400mf", "trunk_output.block1 trunk_output.block2 trunk_output.block3"),
    ],
)
def test_networks_of_torchvision(name, stages):
    """Known architectures, unknown to the rules by name: within the interval, and within 25 %."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    found = errors(model, torch.randn(8, 3, 64, 64), stages.split(), draws=2)
    assert all(abs(error) < 1.96 * std + 0.02 for error, std in found)
    assert all(abs(error) < math.log(1.25) for error, _ in found)


@pytest.mark.slow
def test_windowed_attention():
    """Swin multiplies matrices by hand: the rules see products and a softmax, within 50 %."""
    torch.manual_seed(0)
    model = torchvision.models.swin_t()
    stages = ["features.1", "features.3", "features.5", "features.7"]
    found = errors(model, torch.randn(4, 3, 64, 64), stages, draws=2)
    assert all(abs(error) < math.log(1.5) for error, _ in found)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder(norm_first):
    """Attention, layer norm, residual sums and dropout: each layer within its interval."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    names = [f"layers.{i}" for i in range(6)]
    model.eval()  # measured and predicted see the same network, without dropout
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    found = errors(model, torch.randn(8, 16, 64), names, draws=3)
    assert all(abs(error) < 1.96 * std + 0.02 for error, std in found)


def test_loops_and_gates():
    """A GRU cell over time: sigmoid, tanh, products and shared weights, call by call."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(4, 64)
            self.head = nn.Linear(64, 2)

        def forward(self, x):
            h = x.new_zeros(x.shape[0], 64)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    predictions = predict(Reader(), torch.randn(4, 12, 4))
    assert [p.module for p in predictions] == [
        "cell",
        *(f"cell[{i}]" for i in range(1, 12)),
        "head",
    ]
    # h' = (1 - z) n + z h with z about 1/2 halves the gradient, and the gates add a little.
    assert all(0.4 < p.chi < 0.7 for p in predictions[1:-1])


def test_where_theory_does_not_apply():
    """An operation without a rule is named for its block, and its neighbours keep their numbers."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x * 2

        @staticmethod
        def backward(_, g):
            return g * 2

    class Odd(nn.Module):
        def forward(self, x):
            return Custom.apply(x)

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Odd(), nn.Linear(8, 8))
    predictions = predict(model, torch.randn(4, 8))
    assert [math.isnan(p.chi) for p in predictions] == [True, False, True, False]
    assert "Custom" in predictions[2].reason
    assert "first block" in predictions[0].reason


def test_detached_and_non_finite():
    """No gradient and NaN are reasons, not numbers."""

    class Detach(nn.Module):
        def forward(self, x):
            return x.detach()

    model = nn.Sequential(nn.Linear(4, 4), Detach(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    predictions = predict(model, torch.randn(3, 4))
    assert "no gradient reaches" in predictions[0].reason
    assert predictions[-1].chi > 0
    with torch.no_grad():
        model[2].weight.fill_(torch.nan)
    assert any("not finite" in p.reason for p in predict(model, torch.randn(3, 4)))
