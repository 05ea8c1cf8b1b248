"""Weights behind a scale that opens are waited for; behind one that stays shut they are not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope


class LayerScale(nn.Module):
    """A factor for each channel, as a module of its own."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Scale it."""
        return x * self.gamma


class Block(nn.Module):
    """A branch with a scale, in a module of its own or beside its layers."""

    def __init__(self, width: int, start: float, *, apart: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        if apart:
            self.scale = LayerScale(width, start)
        else:
            self.gamma = nn.Parameter(torch.full((width, 1), start).squeeze(1))
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        y = self.branch(x)
        return x + (self.scale(y) if self.apart else y * self.gamma)


def train(start: float, *, apart: bool = False, steps: int = 5, **options: float):
    """The diagnosis of a training by SGD, its loss before and after, and the kinds of errors."""
    torch.manual_seed(0)
    blocks = [Block(24, start, apart=apart) for _ in range(6)]
    model = nn.Sequential(nn.Linear(16, 24), *blocks, nn.LayerNorm(24), nn.Linear(24, 5))
    classes = torch.randint(5, (256,))
    inputs = 1.5 * torch.randn(5, 16)[classes] + torch.randn(256, 16)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    losses = []
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().item())
    diagnosis = gradscope.diagnose(scope.trace())
    return diagnosis, losses, {f.kind for f in diagnosis.findings if f.severity == "error"}


@pytest.mark.parametrize(
    ("start", "momentum", "apart"), [(1e-6, 0.0, False), (1e-4, 0.9, True), (0.0, 0.0, True)]
)
def test_a_branch_behind_a_scale_that_opens_is_waited_for(start, momentum, apart):
    """The loss falls while most weights hardly move: after five steps and later it is healthy."""
    for steps in (5, 40):
        diagnosis, losses, _ = train(start, apart=apart, steps=steps, lr=0.01, momentum=momentum)
        assert diagnosis.is_healthy, str(diagnosis)
    assert losses[-1] < 0.8 * losses[0]


def test_a_scale_that_stays_shut_excuses_nothing():
    """The rate is too low for the scale as well: nothing opens."""
    _, losses, errors = train(1e-6, steps=12, lr=1e-9)
    assert losses[-1] > 0.999 * losses[0]
    assert "updates-too-small" in errors


def test_a_scale_that_holds_nothing_back_excuses_nothing():
    """At 0.1 the branch gets a gradient, and too low a rate is told."""
    _, _, errors = train(0.1, steps=12, lr=1e-7)
    assert "updates-too-small" in errors


def test_only_the_branch_of_the_scale_is_waited_for():
    """Weights elsewhere that do not move are told, whatever opens."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(6)),
        Block(16, 1e-6, apart=True),
        nn.Linear(16, 5),
    )
    rest = [p for n, p in model.named_parameters() if not n.startswith("6.")]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": 1e-7}, {"params": model[6].parameters(), "lr": 0.1}]
    )
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(12):
            optimizer.zero_grad()
            inputs = torch.randn(32, 16)
            functional.cross_entropy(model(inputs), torch.randint(5, (32,))).backward()
            optimizer.step()
    errors = [f.kind for f in gradscope.diagnose(scope.trace()).findings if f.severity == "error"]
    assert "updates-too-small" in errors
