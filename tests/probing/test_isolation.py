"""What runs inside `preserved` leaves no trace in the model or in the random generators."""

# ruff: noqa: NPY002 - the legacy generator of NumPy is the one that models share
from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.errors import ModelError
from gradscope.probing.isolation import call_model, preserved


class Restless(nn.Module):
    """Changes everything it has on each forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("replaced", torch.ones(2), persistent=False)
        self.passes = 0
        self.cache = {}

    def forward(self, x):
        """Run, and leave traces everywhere."""
        self.passes += 1
        self.last = x
        self.count += torch.nan
        self.replaced = self.replaced * 2
        with torch.no_grad():
            self.linear.weight.mul_(2)
        self.linear.bias.requires_grad_(False)
        self.train(not self.training)
        self.register_forward_hook(lambda *_: None)
        random.random()
        np.random.random()
        return self.linear(x) + torch.randn(4)


def test_everything_comes_back():
    """Values, objects, flags, attributes, hooks, gradients and generators are as before."""
    model = Restless()
    model.linear.weight.grad = grad = torch.full((4, 4), 3.0)
    state = copy.deepcopy(model.state_dict())
    replaced, weight = model.replaced, model.linear.weight
    attributes = set(model.__dict__)
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with preserved(model, seed=1):
        assert model.linear.weight.grad is None
        model(torch.ones(2, 4)).sum().backward()
        assert not torch.equal(model.linear.weight, state["linear.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model.replaced is replaced
    assert torch.equal(replaced, torch.ones(2))
    assert model.linear.weight is weight
    assert weight.grad is grad
    assert grad.eq(3).all()
    assert model.linear.bias.requires_grad
    assert model.training
    assert model.passes == 0
    assert set(model.__dict__) == attributes
    assert not model._forward_hooks
    assert random.getstate() == random_states[0]
    assert np.random.get_state()[1].tolist() == random_states[1]
    assert torch.equal(torch.get_rng_state(), random_states[2])


def test_comes_back_after_an_error():
    """An exception inside changes nothing of that."""
    model = Restless()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="inside"), preserved(model):  # noqa: PT012
        model(torch.ones(2, 4))
        raise ValueError("inside")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bits_count_not_values():
    """NaN that was there stays, and a zero keeps its sign."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[torch.nan, -0.0], [0.0, 1.0]]))
    before = model.weight.detach().view(torch.int32).clone()
    version = model.weight._version
    with preserved(model):
        pass
    assert model.weight._version == version, "an unchanged parameter must not be written to"
    with preserved(model), torch.no_grad():
        model.weight.abs_()
    assert torch.equal(model.weight.detach().view(torch.int32), before)


def test_autograd_is_on_inside():
    """Under no_grad and inference_mode gradients flow inside all the same."""
    model = nn.Linear(2, 1)
    with torch.no_grad(), preserved(model):
        assert model(torch.ones(1, 2)).requires_grad
    with torch.inference_mode(), preserved(model):
        assert model(torch.ones(1, 2)).requires_grad


def test_lazy_parameters_are_refused():
    """A model without shapes is one clear line."""
    with (
        pytest.raises(ModelError, match=r"'0.weight' of Sequential is lazy"),
        preserved(nn.Sequential(nn.LazyLinear(3))),
    ):
        pass


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (torch.ones(2, 5), ["'1' (Linear)", "(2, 5) float32", "--input", "RuntimeError"]),
        (torch.ones(2, 3, dtype=torch.long), ["(2, 3) int64", "keyword arguments"]),
        ((torch.ones(2, 3), torch.ones(1)), ["(2, 3) float32, (1,) float32", "TypeError"]),
        ({"y": torch.ones(2, 3)}, ["y=(2, 3) float32", "TypeError"]),
    ],
)
def test_a_failing_forward_names_module_and_shapes(inputs, parts):
    """The message says where, on what, why, and what to do; on one line."""
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    with pytest.raises(ModelError) as caught:
        call_model(model, inputs)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_keyword_arguments_and_tuples():
    """A mapping is passed by keyword, a tuple by position."""

    class Two(nn.Module):
        def forward(self, a, *, b=1.0):
            return a * b

    assert call_model(Two(), {"a": torch.ones(1), "b": 3.0}) == 3
    assert call_model(Two(), (torch.ones(1),)) == 1
