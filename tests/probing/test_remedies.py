"""Remedies are ranked as theory says, on copies, for networks of any kind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gradscope.errors import ModelError
from gradscope.models.hw5net import HW5Net
from gradscope.probing.remedies import try_remedies


def mlp(depth, width, activation, norm=None):
    """A plain chain with the default initialisation of torch."""
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([norm(width)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def names(outcomes):
    """Names of the remedies, in order."""
    return [outcome.name for outcome in outcomes]


def test_plain_relu_network_wants_kaiming():
    """Theory: Kaiming keeps the gradient (chi 1), the default loses sqrt(1/6) per layer."""
    depth = 16
    found = try_remedies(mlp(depth, 128, nn.ReLU), torch.randn(32, 128))
    assert found.baseline.chi == pytest.approx(math.sqrt(1 / 6), rel=0.06)
    assert found.baseline.verdict == "vanishing"
    assert found.best.name == found.ranked[0].name == "Kaiming initialisation"
    assert found.best.chi == pytest.approx(1.0, abs=0.06)
    by_name = {o.name: o for o in found.ranked}
    assert by_name["Xavier initialisation"].chi == pytest.approx(math.sqrt(1 / 2), rel=0.06)
    assert by_name["batch norm"].chi == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.06)
    assert by_name["layer norm"].chi == pytest.approx(1.0, abs=0.06)
    assert names(found.ranked).index("Xavier initialisation") > names(found.ranked).index(
        "layer norm"
    )


def test_tanh_network_at_the_edge_of_chaos():
    """Theory: tanh without bias keeps the gradient at Var w = 1 / fan_in: Xavier, here."""
    found = try_remedies(mlp(16, 128, nn.Tanh), torch.randn(32, 128))
    assert found.baseline.chi == pytest.approx(math.sqrt(1 / 3), rel=0.1)
    assert found.best.name.endswith("initialisation")
    by_name = {o.name: o for o in found.ranked}
    for name in ("Xavier initialisation", "critical initialisation"):
        assert by_name[name].is_settled
        # Without bias q falls to zero like 1/depth, so chi_1 nears 1 only from below.
        assert by_name[name].chi == pytest.approx(1.0, abs=0.1)
    unfit = {o.name: o.reason for o in found.not_applicable}
    assert "ReLU" in unfit["leaky ReLU"]
    assert "recurrent" in unfit["orthogonal recurrence"]


def test_sigmoid_network_wants_another_activation_or_norm():
    """Theory: no weight variance of use puts a sigmoid on the edge of chaos."""
    found = try_remedies(mlp(12, 64, nn.Sigmoid), torch.randn(32, 64))
    assert found.baseline.verdict == "vanishing"
    assert found.best is not None
    by_name = {o.name: o for o in found.ranked}
    assert by_name["ReLU for saturating activations"].distance < 1.0
    assert by_name["Kaiming initialisation"].distance > 5.0


def test_batch_norm_without_skips_wants_skips():
    """Initialisation changes little where every layer is normalised; a skip does."""
    found = try_remedies(mlp(24, 64, nn.ReLU, nn.BatchNorm1d), torch.randn(64, 64))
    assert found.baseline.accumulated > 1.0
    unfit = {o.name: o.reason for o in found.not_applicable}
    for name in ("Kaiming initialisation", "Xavier initialisation", "orthogonal initialisation"):
        assert "cancels the scale" in unfit[name]
    assert found.best.distance < found.baseline.distance / 2


def test_residual_network_without_norm_wants_scaled_branches():
    """Theory: sqrt(2) per block explodes; branches times 1/sqrt(L) give (1 + 1/L)^(L/2) < 2."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.ReLU(), nn.Linear(64, 64))
            nn.init.kaiming_normal_(self.branch[1].weight)

        def forward(self, x):
            return x + self.branch(x)

    depth = 16
    model = nn.Sequential(nn.Linear(8, 64), *(Block() for _ in range(depth)), nn.Linear(64, 4))
    found = try_remedies(model, torch.randn(16, 8))
    assert found.baseline.chi == pytest.approx(math.sqrt(2), rel=0.06)
    by_name = {o.name: o for o in found.ranked}
    scaled = by_name["scaled residual branches"]
    assert scaled.accumulated == pytest.approx(depth / 2 * math.log10(1 + 1 / depth), abs=0.1)
    assert found.best.is_settled
    assert "without a skip" in {o.name: o.reason for o in found.not_applicable}["skips"]


def test_healthy_network_needs_nothing():
    """A network at chi 1 gets a ranking but no advice."""
    model = mlp(8, 128, nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    found = try_remedies(model, torch.randn(16, 128))
    assert found.baseline.is_settled
    assert found.best is None
    assert found.ranked


def test_mis_scaled_recurrence():
    """A vanilla RNN over many steps is judged by its flow over time, and offered orthogonality."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(4, 32)
            nn.init.normal_(self.cell.weight_hh, std=0.3 / math.sqrt(32))
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            h = torch.zeros(x.shape[0], 32)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    found = try_remedies(Reader(), 0.1 * torch.randn(8, 30, 4))
    assert found.baseline.accumulated < -5
    assert found.best.name == "orthogonal recurrence"


def test_hw5net_plain():
    """The reference network without skips and norm: Kaiming, or batch norm with skips, is first."""
    torch.manual_seed(0)
    model = HW5Net(5, depth=32, skip=False, batch_norm=False)
    found = try_remedies(model, torch.randn(4, 3, 64, 64))
    assert found.baseline.verdict == "vanishing"
    assert found.ranked[0].name in ("Kaiming initialisation", "batch norm + skips")
    assert "batch norm + skips" in names(found.ranked)


def test_the_model_is_not_touched():
    """Bit for bit as it was, with its own modules, and nothing of it shared with what was tried."""
    model = mlp(4, 16, nn.ReLU).eval()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    generator = torch.get_rng_state()
    x = torch.ones(4, 16)
    try_remedies(model, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_remedy_that_breaks_the_network_is_named():
    """A forward that looks into its layers cannot be wrapped: said, not raised."""

    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x) * self.a.weight.mean())

    found = try_remedies(Curious(), torch.randn(4, 8))
    unfit = {o.name: o.reason for o in found.not_applicable}
    assert "does not run" in unfit["batch norm"]
    assert "\n" not in unfit["batch norm"]


def test_a_model_that_cannot_be_copied():
    """One clear line when deepcopy refuses."""
    model = nn.Linear(2, 2)
    model.cache = model(torch.ones(1, 2))
    with pytest.raises(ModelError, match="Linear cannot be copied"):
        try_remedies(model, torch.ones(1, 2))
