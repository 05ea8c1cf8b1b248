"""Layers in plain lists whose parameters the network has: the blind spot is said once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning


class Listed(nn.Module):
    """Its layers stand in a list, their parameters in the network itself, as in Keras."""

    def __init__(self, own=True):
        super().__init__()
        self.layers = {"all": [[nn.Linear(4, 4), nn.Tanh()], (nn.Linear(4, 1),)]}
        self.teacher = [nn.Linear(4, 1)]
        self.gain = nn.Parameter(torch.ones(1))
        if own:
            layers = (self.layers["all"][0][0], self.layers["all"][1][0])
            self.held = nn.ParameterList([p for layer in layers for p in layer.parameters()])

    def forward(self, x):
        """Through the list."""
        for layers in self.layers["all"]:
            for layer in layers:
                x = layer(x)
        return x * self.gain


def record(model):
    """A scope that saw three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    return scope


def test_layers_in_lists_are_named_once():
    """As many as have parameters of the network, and no teacher; the verdict is not healthy."""
    with pytest.warns(GradscopeWarning, match=r"2 layers \(Linear\) stand in plain") as caught:
        scope = record(Listed())
    assert len(caught) == 1
    assert len(scope.blind_spots) == 1
    diagnosis = gradscope.diagnose(scope.trace())
    assert diagnosis.verdict == "inconclusive"
    assert "no-activations" in {finding.kind for finding in diagnosis.findings}


def test_layers_whose_parameters_are_not_the_networks_are_another_matter():
    """They are strangers, which the diagnosis names."""
    scope = record(Listed(own=False))
    assert scope.blind_spots == ()
    assert len(scope.trace().structure.strangers) > 0
