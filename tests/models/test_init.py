"""Initialisation by name: variances and shapes of distributions by theory, seeds, errors."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gradscope.errors import ModelError
from gradscope.models import InitConfig, ModelConfig, build, initialise

FAN_IN, FAN_OUT = 64 * 9, 128 * 9


def drawn(init, seed=0):
    """A 64 -> 128 3x3 convolution, 73,728 weights, initialised by name."""
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Conv2d(64, 128, 3))
    initialise(layer, InitConfig.model_validate(init))
    return layer[0].weight.detach().double().flatten()


THEORY = {
    "default": (1 / (3 * FAN_IN), "uniform"),  # U(+-1/sqrt(fan_in))
    "kaiming": (2 / FAN_IN, "uniform"),
    "kaiming_uniform": (2 / FAN_IN, "uniform"),
    "kaiming_normal": (2 / FAN_IN, "normal"),
    "xavier": (2 / (FAN_IN + FAN_OUT), "uniform"),
    "xavier_normal": (2 / (FAN_IN + FAN_OUT), "normal"),
}


@pytest.mark.parametrize("name", THEORY)
def test_variance_and_distribution(name):
    """Variance and kurtosis of the weights are those of the named scheme, within 5 sigma."""
    weight = drawn(name)
    variance, distribution = THEORY[name]
    kurtosis = {"uniform": 9 / 5, "normal": 3.0}[distribution]
    sigma = variance * math.sqrt((kurtosis - 1) / weight.numel())
    assert weight.square().mean().item() == pytest.approx(variance, abs=5 * sigma)
    measured = (weight.pow(4).mean() / weight.square().mean() ** 2).item()
    assert measured == pytest.approx(kurtosis, abs=5 * math.sqrt(24 / weight.numel()))
    if distribution == "uniform":
        assert weight.abs().max().item() <= math.sqrt(3 * variance) * (1 + 1e-6)


def test_orthogonal():
    """The rows of an orthogonal convolution form an orthonormal system."""
    rows = drawn("orthogonal").reshape(128, -1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(128, dtype=torch.double), atol=1e-5, rtol=0)


def test_only_the_named_layers_change():
    """The study's Kaiming touches weights of Conv2d alone: no bias, no linear layer, no norm."""
    config = ModelConfig(name="hw5net")
    before = build(config, seed=3).state_dict()
    after = build(config.model_copy(update={"init": InitConfig(scheme="kaiming")}), seed=3)
    convolutions = {f"{n}.weight" for n, m in after.named_modules() if isinstance(m, nn.Conv2d)}
    changed = {n for n, value in after.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == convolutions


def test_layers_by_class_name():
    """Other layer types are chosen by name; a base class covers its heirs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 300), nn.Conv1d(64, 64, 3), nn.Conv2d(1, 1, 1))
    before = [m.weight.clone() for m in model]
    init = InitConfig(scheme="xavier", distribution="normal", layers=("Linear", "_ConvNd"))
    initialise(model, init)
    assert not any(torch.equal(m.weight, old) for m, old in zip(model, before, strict=True))
    expected = 2 / (200 + 300)
    sigma = expected * math.sqrt(2 / 60_000)
    measured = model[0].weight.double().square().mean().item()
    assert measured == pytest.approx(expected, abs=5 * sigma)


def test_default_touches_nothing():
    """`default` draws no number at all."""
    model = nn.Linear(3, 3)
    before, state = model.weight.clone(), torch.get_rng_state()
    initialise(model, InitConfig())
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("kaimin", "did you mean 'kaiming'"),
        ("orthogonal_normal", "unknown initialisation 'orthogonal_normal'"),
        ("default_uniform_uniform", "unknown initialisation"),
        ({"scheme": "orthogonal", "distribution": "normal"}, "orthogonal has no normal"),
        ({"scheme": "he"}, "'kaiming'"),
        ({"sheme": "xavier"}, "Extra inputs"),
    ],
)
def test_wrong_settings(value, says):
    """A wrong name or combination is refused when the grid is read."""
    with pytest.raises(ValidationError, match=says):
        ModelConfig(name="hw5net", init=value)


def test_short_name_and_full_setting_are_one_setting():
    """Both ways of writing give equal settings, so a cell has one identity."""
    short = ModelConfig(name="net3", init="xavier_normal")
    full = ModelConfig(name="net3", init={"scheme": "xavier", "distribution": "normal"})
    assert short == full
    assert ModelConfig.model_validate(short.model_dump(mode="json")) == short


def test_no_such_layer():
    """An initialisation that would touch nothing is an error, not a silent default."""
    with pytest.raises(ModelError, match=r"no layer of type 'Conv2d'.*valid: Linear"):
        initialise(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), InitConfig(scheme="kaiming"))


def test_layer_without_matrix():
    """fan_in is undefined for a batch norm, and that is said."""
    init = InitConfig(scheme="kaiming", layers=("BatchNorm2d",))
    with pytest.raises(ModelError, match="BatchNorm2d 0 has no weight matrix"):
        initialise(nn.Sequential(nn.BatchNorm2d(2)), init)
