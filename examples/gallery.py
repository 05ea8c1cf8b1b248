"""Reports of networks that are sick in a known way: ``python -m examples.gallery FOLDER``.

Each is trained for a few steps on numbers drawn at random, so that it takes seconds, and what ails
it is how it is built, not what it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from examples.gpt import Gpt, initialise
from gradscope.models.hw5net import HW5Net, Net3

Draw = Callable[[], tuple[Tensor, Tensor]]
"""Inputs and targets of a step."""
Made = tuple[nn.Module, Draw, float]
"""A network, what it is shown, and the learning rate of Adam."""


def numbers(*shape: int, classes: int) -> Draw:
    """The same examples at every step."""
    batch = torch.randn(*shape), torch.randint(classes, shape[:1])
    return lambda: batch


def letters(batch: int, context: int, alphabet: int) -> Draw:
    """Another text at every step, in which some letters are common and most are rare."""
    common = 1 / torch.arange(1, alphabet + 1)

    def draw() -> tuple[Tensor, Tensor]:
        drawn = torch.multinomial(common, batch * (context + 1), replacement=True)
        text = drawn.view(batch, context + 1)
        return text[:, :-1], text[:, 1:]

    return draw


def dead() -> Made:
    """ReLUs behind biases far below zero: nearly no unit ever fires."""
    layers: list[nn.Module] = []
    for _ in range(6):
        linear = nn.Linear(32, 32)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.constant_(linear.bias, -3.0)
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    return model, numbers(64, 32, classes=4), 1e-3


def exploding_norm() -> Made:
    """Forty layers of batch norm and ReLU without a skip: the gradient grows by 21 % a layer."""
    layers: list[nn.Module] = [nn.Linear(32, 64)]
    for _ in range(40):
        layers += [nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    return model, numbers(64, 32, classes=4), 1e-4


def transformer() -> Made:
    """Norms after the sums, twelve blocks, a learning rate of 1e-2 from the first step on."""
    model = Gpt(64, context=32, width=32, heads=4, depth=12, norm="post")
    initialise(model, "gpt")
    return model, letters(8, 32, 64), 1e-2


def hw5net() -> Made:
    """The network of the reference study at depth 8, with skips and batch norm."""
    return HW5Net(depth=8), numbers(8, 3, 64, 64, classes=5), 1e-3


def net3() -> Made:
    """The plain chain of the homework before, as PyTorch initialises it."""
    return Net3(), numbers(8, 3, 64, 64, classes=5), 1e-3


@dataclass(frozen=True)
class Patient:
    """A network of the gallery."""

    name: str
    title: str
    make: Callable[[], Made]
    steps: int = 30
    every: int = 3

    @property
    def what(self) -> str:
        """What is wrong with it, in a sentence."""
        return self.make.__doc__ or ""


PATIENTS = (
    Patient("dead", "A dead network", dead),
    Patient("exploding-norm", "Batch norm without skips, too deep", exploding_norm),
    Patient(
        "transformer", "A post-norm transformer without warm-up", transformer, steps=60, every=5
    ),
    Patient("hw5net", "HW5Net", hw5net, steps=6, every=1),
    Patient("net3", "Net3", net3, steps=6, every=1),
)


def record(patient: Patient) -> gradscope.Trace:
    """Train one of them for a few steps and record it."""
    torch.manual_seed(0)
    model, draw, lr = patient.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with gradscope.watch(model, optimizer, every=patient.every) as scope:
        for _ in range(patient.steps):
            inputs, targets = draw()
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
            loss.backward()
            optimizer.step()
            scope.log(loss=loss)
    return scope.trace()


def draw(folder: Path) -> Iterator[tuple[Patient, gradscope.Diagnosis]]:
    """Write the report of each into a folder, and tell its diagnosis."""
    for patient in PATIENTS:
        trace = record(patient)
        gradscope.write_report(trace, folder / f"{patient.name}.html")
        yield patient, gradscope.diagnose(trace)


if __name__ == "__main__":
    for patient, diagnosis in draw(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gallery")):
        sys.stdout.write(f"{patient.title}: {patient.what}\n{diagnosis}\n\n")
