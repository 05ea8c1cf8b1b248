"""Zero gradients: a gate that opens, factors that never do, and what is dead."""

import pytest
import torch
from handwritten import Net
from torch import nn

import gradscope
from gradscope.diagnosis.verdict import Severity


class LoRA(nn.Module):
    """A frozen layer with a low-rank update whose second factor starts at zero."""

    def __init__(self, *, stuck):
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.up.weight)
        if stuck:
            nn.init.zeros_(self.down.weight)

    def forward(self, x):
        """The layer and its update."""
        return self.base(x) + self.up(self.down(x))


class Gated(nn.Module):
    """A residual branch behind a gate that starts at zero: ReZero, tanh gates, SkipInit."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.branch = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        if kind == "last layer":
            nn.init.zeros_(self.branch[2].weight)
            nn.init.zeros_(self.branch[2].bias)
        elif kind == "norm":
            self.norm = nn.LayerNorm(16)
            nn.init.zeros_(self.norm.weight)
        else:
            self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        """The input and the gated branch."""
        y = self.branch(x)
        if self.kind == "norm":
            y = self.norm(y)
        elif self.kind == "tanh":
            y = self.gate.tanh() * y
        elif self.kind == "scalar":
            y = self.gate * y
        return x + y


def net(make):
    """Three blocks and a head."""
    torch.manual_seed(0)
    return nn.Sequential(*(make() for _ in range(3)), nn.Linear(16, 4))


def watched(model, steps, **options):
    """The diagnosis of a short training."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-2)
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    with gradscope.watch(model, optimizer, every=1, **options) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return gradscope.diagnose(scope.trace())


@pytest.mark.parametrize("kind", ["last layer", "norm", "scalar", "tanh"])
def test_gates_that_start_at_zero_are_healthy(kind):
    """By a probe and by watching a training, of one step and of many."""
    probed = gradscope.probe(net(lambda: Gated(kind)), torch.randn(8, 16), torch.randint(4, (8,)))
    assert gradscope.diagnose(probed).is_healthy
    assert watched(net(lambda: Gated(kind)), 1).is_healthy
    assert watched(net(lambda: Gated(kind)), 12).is_healthy


def test_one_factor_at_zero_opens_and_two_never_do():
    """LoRA as published is healthy; with both factors at zero nothing ever moves."""
    healthy, stuck = net(lambda: LoRA(stuck=False)), net(lambda: LoRA(stuck=True))
    for part in (healthy[3], stuck[3]):
        part.requires_grad_(False)
    inputs = torch.randn(8, 16), torch.randint(4, (8,))
    assert gradscope.diagnose(gradscope.probe(healthy, *inputs)).is_healthy
    assert watched(healthy, 12).is_healthy
    for diagnosis in (gradscope.diagnose(gradscope.probe(stuck, *inputs)), watched(stuck, 12)):
        assert diagnosis.verdict == "dead"
        assert diagnosis.findings[0].kind == "zero-initialised"
        assert "0.down.weight" in diagnosis.findings[0].where


def test_stuck_factors_are_found_beside_gates_that_open():
    """Another gate, after them, opens; in training they stay at zero, and that is an error."""
    model = nn.Sequential(LoRA(stuck=True), Gated("scalar"), nn.Linear(16, 4))
    assert watched(model, 12).verdict == "dead"


def test_a_head_at_zero_is_healthy():
    """MuP's and Fixup's heads start at zero, so that nothing else gets a gradient at first."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[2].weight)
    probed = gradscope.probe(model, torch.randn(8, 16), torch.randint(4, (8,)))
    assert gradscope.diagnose(probed).is_healthy
    assert watched(model, 12).is_healthy


def test_without_norms_of_weights_one_step_does_not_tell():
    """Whether a zero weight explains it was not recorded: no verdict, and what would settle it."""
    diagnosis = watched(net(lambda: Gated("last layer")), 1, norms_only=True)
    assert diagnosis.verdict == "inconclusive"
    assert watched(net(lambda: Gated("last layer")), 12, norms_only=True).is_healthy


def test_nothing_arrives_is_dead_unless_a_zero_weight_explains_it():
    """Exactly zero gradients below a layer: dead; with a head that starts at zero: information."""
    net = Net(6)
    for i in range(5):
        net.put("activation_grad", f"l{i}", norm=0.0)
        net.put("weight", f"l{i}", "weight", norm=0.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "dead"
    assert findings["zero-gradient"].severity is Severity.ERROR
    net.put("weight", "l5", "weight", weight_norm=0.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["zero-initialised"].where == "l5.weight"
    assert "Record a few steps" in findings["zero-initialised"].remedy


def test_a_class_token_of_zeros_in_front_of_a_head_of_zeros():
    """The token belongs to the root, which ends last; it is read first, and the head opens it."""

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.body = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
            self.head = nn.Linear(16, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return self.head(self.body(x)[:, 0])

    torch.manual_seed(0)
    diagnosis = gradscope.diagnose(gradscope.probe(Vision(), torch.randn(8, 5, 16)))
    assert diagnosis.is_healthy, str(diagnosis)
