"""What recording costs a compiled network: steps watched over bare ones, interleaved.

    python benchmarks/compiled_overhead.py --backend inductor --rounds 30

Two copies of one network are compiled alike; one of them is watched. Each round times a bare step,
a step of the watched copy that is not recorded and one that is, and takes the ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import gradscope


class Block(nn.Module):
    """A branch beside a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width) to the same."""
        return x + self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    """Eight blocks of width 256."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(256) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 256) to the same."""
        return self.blocks(x)


def main() -> None:
    """Print the medians of the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    bare, watched = Net(), Net()
    runs = [(net, torch.optim.SGD(net.parameters(), lr=1e-3)) for net in (bare, watched)]
    inputs = torch.randn(256, 256)

    def step(which: int) -> float:
        net, optimizer = runs[which]
        start = time.perf_counter()
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start

    for net, _ in runs:
        net.compile(backend=arguments.backend)
    ratios: dict[str, list[float]] = {"unrecorded": [], "recorded": []}
    with gradscope.watch(*runs[1], every=2):
        for i in range(-3, arguments.rounds):  # the first three compile and warm up
            recorded, first, unrecorded, second = step(1), step(0), step(1), step(0)
            if i >= 0:
                ratios["unrecorded"].append(unrecorded / ((first + second) / 2))
                ratios["recorded"].append(recorded / ((first + second) / 2))
    for name, found in ratios.items():
        low, median, high = statistics.quantiles(found, n=4)
        print(f"{name:>10} / bare: {median:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
