"""assert_gradient_health."""

import pytest
import torch
from torch import nn

from gradscope.errors import ConfigError
from gradscope.testing.health import assert_gradient_health


def chain(depth, gain):
    """ReLU layers 64 wide at He initialisation times a gain."""
    layers = []
    for _ in range(depth):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, 0.0, gain * (2 / 64) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 5))


def test_healthy_network_passes_and_stays_as_it_was():
    """The diagnosis comes back; weights, gradients and the generator are untouched."""
    model = chain(10, 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    diagnosis = assert_gradient_health(model, torch.ones(8, 64), torch.zeros(8, dtype=torch.long))
    assert diagnosis.is_healthy
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_sick_network_fails_with_the_diagnosis():
    """The message names the verdict, where and the remedy."""
    with pytest.raises(AssertionError, match=r"(?s)verdict: vanishing.*0 \.\.\. .*remedy: "):
        assert_gradient_health(chain(20, 0.3), torch.randn(8, 64))


def test_allowed_verdict_passes_and_a_wrong_name_is_told():
    """`allow` widens what is good enough; a name that is no verdict is an error."""
    assert_gradient_health(chain(20, 0.3), torch.randn(8, 64), allow=["vanishing"])
    with pytest.raises(ConfigError, match="did you mean 'vanishing'"):
        assert_gradient_health(chain(2, 1.0), torch.randn(8, 64), allow=["vanish"])
