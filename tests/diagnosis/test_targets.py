"""Findings on the targets: their shape, their scale, whether they differ; and what looks alike."""

import math

import pytest
import torch
from casebook import Trained, clouds, curve, mlp, run, supervised
from torch import nn
from torch.nn import functional

from gradscope import diagnose, watch


def kinds(trained):
    """{kind: severity} of what is said of a training."""
    return {f.kind: str(f.severity) for f in diagnose(run(trained)).findings}


PAIRS = {
    "(n, 1) - (n)": lambda o, y: (o - y.squeeze(1)).square().mean(),
    "(n) - (n, 1)": lambda o, y: (o.squeeze(1) - y).abs().mean(),
    "(n) from (n, 1)": lambda o, y: (y - o.squeeze(1)).square().mean(),
    "expanded": lambda o, y: functional.mse_loss(o.expand(-1, len(y)), y.T.expand(len(y), -1)),
}
SAME = {
    "(n, 1) - (n, 1)": lambda o, y: (o - y).square().mean(),
    "(n) - (n)": lambda o, y: (o.squeeze(1) - y.squeeze(1)).square().mean(),
    "ranks of pairs": lambda o, y: functional.softplus(-(o - o.T) * (y - y.T).sign()).mean(),
    "against three quantiles": lambda o, y: (o - y - torch.tensor([-1.0, 0, 1])).square().mean(),
    "less its mean": lambda o, y: (o - o.mean() - y).square().mean(),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_output_against_all_targets_is_found(name):
    """Of n numbers against n in another shape, n * n differences come out."""
    draw = curve(0)
    model = mlp(8, 1)
    assert kinds(Trained(model, supervised(model, PAIRS[name], draw), steps=3)) == {
        "target-broadcast": "error"
    }


@pytest.mark.parametrize("name", SAME)
def test_what_is_meant_to_be_stretched_is_left_in_peace(name):
    """Shapes that fit, pairs of examples, several targets for each."""
    model = mlp(8, 1)
    found = kinds(Trained(model, supervised(model, SAME[name], curve(0)), steps=3))
    assert "target-broadcast" not in found


@pytest.mark.parametrize(("scale", "expected"), [(1.0, False), (10.0, False), (1e3, True)])
def test_targets_in_thousands(scale, expected):
    """A step of Adam moves an output by about its rate times its width: thousands are far."""
    draw, model = curve(0), mlp(8, 1)
    loss = supervised(model, lambda o, y: functional.mse_loss(o, scale * (y + 3)), draw)
    assert ("target-scale" in kinds(Trained(model, loss, lr=3e-3))) is expected


def test_large_targets_that_are_reached_are_well():
    """The bias of the last layer starts at their mean."""
    draw, model = curve(0), mlp(8, 1)
    with torch.no_grad():
        model[4].bias.fill_(3000.0)
    loss = supervised(model, lambda o, y: functional.mse_loss(o, 3000 + y), draw)
    assert "target-scale" not in kinds(Trained(model, loss))


def labelled(classes, label):
    """A training on clouds whose labels are made anew."""
    draw, model = clouds(0, classes), mlp(16, classes)
    return Trained(
        model, supervised(model, lambda o, y: functional.cross_entropy(o, label(y)), draw)
    )


def test_one_label_for_all():
    """An error; of two classes one may be rare, which is a warning."""
    assert kinds(labelled(5, torch.zeros_like))["constant-target"] == "error"
    assert kinds(labelled(2, torch.ones_like))["constant-target"] == "warning"
    assert "constant-target" not in kinds(labelled(5, lambda y: y))


def test_the_first_of_many_pairs_is_right_by_construction():
    """Contrastive logits, the positive pair first, have the label 0 throughout."""
    draw, model = clouds(0), mlp(16, 8)
    queue = functional.normalize(torch.randn(64, 8))

    def value(step):
        x, _ = draw()
        a, b = (functional.normalize(model(x + 0.1 * torch.randn_like(x))) for _ in range(2))
        logits = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.T], dim=1) / 0.2
        return functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))

    assert "constant-target" not in kinds(Trained(model, value))


def test_a_loss_without_a_bound_is_told_from_a_density():
    """A likelihood with the wrong sign runs away; that of a Gaussian settles at log sigma + 1/2."""
    draw, model = clouds(0), mlp(16, 5)
    away = supervised(model, lambda o, y: -functional.cross_entropy(o, y), draw)
    assert kinds(Trained(model, away, steps=60))["unbounded-loss"] == "error"
    draw, density = curve(0), nn.Sequential(mlp(8, 2))

    def likelihood(o, y):
        mean, log_sigma = o.chunk(2, 1)
        return (log_sigma + 0.5 * ((0.01 * y - mean) / log_sigma.exp()).square()).mean()

    assert math.log(0.01) + 0.5 < 0
    loss = supervised(density, likelihood, draw)
    assert "unbounded-loss" not in kinds(Trained(density, loss, steps=150, lr=1e-2))


def absolute(output, targets, loss):
    """The findings on a small network with a bounded output, trained on these targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), output)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer, every=1) as scope:
        for _ in range(6):
            optimizer.zero_grad()
            loss(model(torch.randn(64, 8)), targets(64)).backward()
            optimizer.step()
    diagnosis = diagnose(scope.trace())
    return diagnosis, {finding.kind: finding for finding in diagnosis.findings}


ABSOLUTE = (functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)


@pytest.mark.parametrize("loss", ABSOLUTE)
@pytest.mark.parametrize(("output", "targets"), [
    (nn.Sigmoid(), lambda n: 10 * torch.rand(n, 1)),
    (nn.Sigmoid(), lambda n: -5 - torch.rand(n, 1)),
    (nn.Tanh(), lambda n: 5 * torch.randn(n, 1)),
])  # fmt: skip
def test_an_absolute_error_that_no_target_in_range_can_make(output, targets, loss):
    """Targets far above, below and on both sides of what the output gives."""
    diagnosis, findings = absolute(output, targets, loss)
    assert diagnosis.verdict == "vanishing"
    assert (findings["target-range"].severity, findings["target-range"].where) == ("error", "3")
    assert type(output).__name__.lower() in findings["target-range"].remedy


@pytest.mark.parametrize("loss", ABSOLUTE)
@pytest.mark.parametrize(("output", "targets"), [
    (nn.Sigmoid(), lambda n: torch.rand(n, 1)),
    (nn.Sigmoid(), lambda n: torch.rand(n, 1).round()),  # as far as the range goes
    (nn.Sigmoid(), lambda n: torch.ones(n, 1)),
    (nn.Sigmoid(), lambda n: torch.rand(n, 1).round() + 0.05 * torch.randn(n, 1)),
    (nn.Tanh(), lambda n: torch.randn(n, 1).sign()),
    (nn.Identity(), lambda n: 10 * torch.rand(n, 1)),
])  # fmt: skip
def test_an_absolute_error_within_reach(output, targets, loss):
    """Not a word, also where every target lies at the bound."""
    diagnosis, findings = absolute(output, targets, loss)
    assert diagnosis.is_healthy, str(diagnosis)
    assert "target-range" not in findings
