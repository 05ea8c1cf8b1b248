"""A network and images so small that a grid of them takes seconds; fixture `tiny` copies this."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn


def net(n_classes, width=4, trouble="", pause=0.0):
    """A small network, or trouble of the kind that is asked for."""
    if trouble == "raise":
        raise RuntimeError("no such luck")
    if trouble == "once" and not Path("tried").exists():
        Path("tried").touch()
        raise RuntimeError("only this time")
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "exit":
        raise SystemExit(7)
    time.sleep(pause)
    print("a model that talks")  # noqa: T201 - as models of others do
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, n_classes)
    )


def chain(n_classes, deep=False):
    """Twelve sigmoids in a row, through which no gradient comes, or one ReLU."""
    layers = [nn.Flatten(), nn.Linear(192, 16)]
    for _ in range(12 if deep else 1):
        layers += [nn.Sigmoid() if deep else nn.ReLU(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, n_classes))


class Squares(torch.utils.data.Dataset):
    """Noise whose brightness is the class."""

    classes = ("dark", "light")

    def __init__(self, n):
        self.targets = [i % 2 for i in range(n)]
        noise = torch.randint(0, 90, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1))
        self.images = (noise + 120 * torch.tensor(self.targets)[:, None, None, None]).to(
            torch.uint8
        )

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


def images(n=24):
    """Training and validation images."""
    return Squares(n), Squares(12)
