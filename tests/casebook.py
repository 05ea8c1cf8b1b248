"""Small trainings with a known fault, each with its mended twin, and sound ones that look odd.

`SICK[name](seed, mended)` builds one of the faults, `SOUND[name](seed)` a network that is well;
`run` watches it. A twin differs from its fault in nothing but the fault. The faults stand in
`faults_at_loss`, `faults_in_graph`, the sound ones in `sound_oddities`; importing those fills both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import gradscope


@dataclass(frozen=True)
class Trained:
    """A network and one step of its training."""

    model: nn.Module
    loss: Callable[[int], Tensor]
    """The loss of step i."""
    kinds: tuple[str, ...] = ()
    """Any of these findings is right; for a sound network none."""
    where: str = ""
    """Regular expression that the place of the finding matches."""
    remedy: str = ""
    """Regular expression that its remedy matches."""
    lr: float = 3e-3
    steps: int = 40
    optimizer: Callable[..., torch.optim.Optimizer] = field(default=torch.optim.Adam)
    again: Callable[[nn.Module], Any] | None = None
    """Called after each step."""


Build = Callable[[int, bool], Trained]
SICK: dict[str, Build] = {}
SOUND: dict[str, Callable[[int], Trained]] = {}


def sick(build: Build) -> Build:
    """Register a fault."""
    SICK[build.__name__] = build
    return build


def sound(build: Callable[[int], Trained]) -> Callable[[int], Trained]:
    """Register a network that is well."""
    SOUND[build.__name__] = build
    return build


def run(trained: Trained) -> gradscope.Trace:
    """Train it while it is watched."""
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    optimizer = trained.optimizer(parameters, lr=trained.lr)
    with gradscope.watch(trained.model, optimizer, every=1) as scope:
        for i in range(trained.steps):
            optimizer.zero_grad()
            trained.loss(i).backward()
            optimizer.step()
            if trained.again is not None:
                trained.again(trained.model)
    return scope.trace()


def drawn(seed: int, *data: Tensor, size: int = 32) -> Callable[[], tuple[Tensor, ...]]:
    """Endless random batches."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, ...]:
        chosen = torch.randint(len(data[0]), (size,), generator=generator)
        return tuple(each[chosen] for each in data)

    return draw


def clouds(seed: int, classes: int = 5, width: int = 16, size: int = 32) -> Any:
    """Batches of Gaussian clouds, one for each class; seeds torch."""
    torch.manual_seed(seed)
    targets = torch.randint(classes, (512,))
    centres = 1.5 * torch.randn(classes, width)
    return drawn(seed, centres[targets] + torch.randn(512, width), targets, size=size)


def curve(seed: int, width: int = 8) -> Any:
    """Batches of a smooth function, targets (n, 1) of mean 0 and deviation 1; seeds torch."""
    torch.manual_seed(seed)
    x = torch.randn(512, width)
    y = x[:, 0].sin() + x[:, 1] * x[:, 2] + x[:, 3]
    return drawn(seed, x, ((y - y.mean()) / y.std()).unsqueeze(1))


def mlp(width: int, out: int, *end: nn.Module, hidden: int = 48) -> nn.Sequential:
    """Three layers with ReLU."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
        *end,
    )


def supervised(
    model: nn.Module, loss: Callable[..., Tensor], draw: Callable[[], tuple[Tensor, ...]]
) -> Callable[[int], Tensor]:
    """Compare the output for fresh inputs with their targets."""

    def value(step: int) -> Tensor:
        x, y = draw()
        return loss(model(x), y)

    return value
