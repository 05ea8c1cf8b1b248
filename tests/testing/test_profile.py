"""Profiles of gradient norms: what they measure and when two of them differ."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from gradscope.errors import ConfigError, TraceError
from gradscope.probing.probe import probe
from gradscope.testing.profile import (
    FALSE_ALARM,
    ROUNDING,
    Layer,
    Profile,
    compare,
    load,
    measure,
    predicted_std,
    tolerance,
)


def chain(gain=1.0, depth=8, width=48):
    """ReLU layers at He initialisation times a gain."""
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, 0.0, gain * (2 / width) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def inputs():
    """Normal vectors, anew for each seed."""
    return torch.randn(16, 48)


def shifted(build, by):
    """A factory that uses other seeds."""

    def factory():
        torch.manual_seed(torch.initial_seed() + by)
        return build()

    return factory


def test_norms_are_those_of_autograd():
    """A single model gives log10 of its own gradient norms, and no spread."""
    torch.manual_seed(0)
    model, x, y = chain(depth=2), inputs(), torch.randint(5, (16,))
    profile = measure(model, x, y)
    nn.functional.cross_entropy(model(x), y).backward()
    expected = {
        name.removesuffix(".weight"): math.log10(p.grad.norm())
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    found = {layer.name: layer.log10_norm for layer in profile.layers if layer.name[0] != "@"}
    assert found == pytest.approx(expected, abs=1e-4)
    assert profile.seeds == 1
    assert {layer.std for layer in profile.layers} == {0.0}


def test_generators_come_back():
    """Measuring draws weights and inputs, and leaves torch's generator where it was."""
    state = torch.get_rng_state()
    measure(chain, inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_seeds_are_no_change():
    """Twenty profiles with seeds of their own agree with the first one."""
    first = measure(chain, inputs)
    others = (measure(shifted(chain, 1000 * i), inputs) for i in range(1, 21))
    assert [compare(first, other) for other in others] == [""] * 20


@pytest.mark.parametrize("gain", [0.7, 1.4])
def test_other_initialisation_is_a_change(gain):
    """A gain of sqrt(2) either way, as between Xavier and Kaiming, is seen and listed."""
    difference = compare(measure(chain, inputs), measure(lambda: chain(gain), inputs))
    assert "log10 gradient norms changed in" in difference
    direction = "-" if gain < 1 else "+"
    assert all(
        f"  {direction}" in line for line in difference.splitlines()[2:] if line.startswith("@")
    )


def test_layers_that_come_go_or_lose_their_gradient_are_named():
    """New, missing and zeroed layers are changes whatever the tolerance."""
    stored = Profile((Layer("a", 0.0, 0.1), Layer("b", 0.0, 0.1), Layer("c", -1.0, 0.1)), 3, 0.1)
    now = Profile((Layer("a", 0.0, 0.1), Layer("c", None, 0.0), Layer("d", 0.0, 0.1)), 3, 0.1)
    text = compare(stored, now)
    assert "changed in 3 of 4 layers" in text
    rows = [line.split(maxsplit=3) for line in text.splitlines()[2:]]
    assert rows == [
        ["b", "+0.00", "-", "layer is gone"],
        ["c", "-1.00", "zero", "zero"],
        ["d", "-", "+0.00", "new layer"],
    ]


def test_spread_between_seeds_follows_from_the_width():
    """The predicted spread is that of 60 measured networks, within its own standard error."""
    torch.manual_seed(1)
    traces = [probe(chain(width=48), inputs(), predict=False) for _ in range(60)]
    tensors, _ = traces[0].series("activation_grad", "norm")
    first = next(i for i, tensor in enumerate(tensors) if tensor.module == "1")
    logs = [t.series("activation_grad", "norm")[1][0, first].log10().item() for t in traces]
    measured = torch.tensor(logs).std().item()
    predicted = predicted_std(traces[0])
    # Theory is for one example; averaging 16 correlated ones takes some of the spread away.
    assert 0.4 * predicted < measured < 1.2 * predicted


def test_tolerance_is_the_normal_interval_of_a_difference_of_means():
    """With the spread of the widths alone: scipy's quantile times sigma sqrt(1/3 + 1/3)."""
    layers = tuple(Layer(f"l{i}", 0.0, 0.0) for i in range(40))
    profile = Profile(layers, 3, width_std=0.2)
    expected = stats.norm.ppf(1 - FALSE_ALARM / 80) * 0.2 * math.sqrt(2 / 3)
    found = tolerance(layers[0], layers[1], profile, profile)
    assert found == pytest.approx(expected, abs=2 * ROUNDING)


def test_seeds_that_scatter_more_than_the_widths_widen_the_tolerance():
    """A layer with a spread of its own is allowed it."""
    calm, wild = Layer("a", 0.0, 0.0), Layer("b", 0.0, 0.5)
    profile = Profile((calm, calm, wild), 3, width_std=0.1)
    ratio = tolerance(wild, wild, profile, profile) / tolerance(calm, calm, profile, profile)
    assert ratio == pytest.approx(0.5 / (0.5 / math.sqrt(3)), rel=0.01)


def test_file_round_trip(tmp_path):
    """What is saved is loaded; a newer version and a broken file are told in one line."""
    path = tmp_path / "deep" / "p.json"
    profile = measure(chain, inputs)
    profile.save(path)
    loaded = load(path)
    assert compare(loaded, profile) == ""
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in profile.layers]
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(TraceError, match="newer gradscope"):
        load(path)
    path.write_text("[1")
    with pytest.raises(TraceError, match="no gradient profile"):
        load(path)


def test_seeds_must_be_positive():
    """No seed, no profile."""
    with pytest.raises(ConfigError, match="seeds=0"):
        measure(chain, inputs, seeds=0)
