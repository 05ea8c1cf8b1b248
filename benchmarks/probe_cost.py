"""What a probe costs: its time over that of one plain forward and backward of the same batch.

    python benchmarks/probe_cost.py [--model resnet50] [--batch 8] [--size 224] [--rounds 7]

Probe and plain pass take turns, so that a machine that slows down slows both; quoted is the median
of the ratios of neighbours. Imports are not counted. A probe includes the recording, the saving
and restoring of the model, and the prediction.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch.nn import functional

import gradscope


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call, with the accelerator drained."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="name in torchvision.models")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = getattr(torchvision.models, options.model)().to(device)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    classes = torch.randint(1000, (options.batch,), device=device)

    def plain() -> None:
        functional.cross_entropy(model(images), classes).backward()
        model.zero_grad(set_to_none=True)

    def probe(*, predict: bool) -> None:
        gradscope.probe(model, images, classes, predict=predict)

    kinds: dict[str, Callable[[], object]] = {
        "probe": lambda: probe(predict=True),
        "probe without prediction": lambda: probe(predict=False),
    }
    plain()
    probe(predict=True)
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    base = []
    for _ in range(options.rounds):
        for name, work in kinds.items():
            before = seconds(plain)
            ratios[name].append(seconds(work) / before)
            base.append(before)
    print(
        f"{options.model}, batch {options.batch}, {options.size}x{options.size}, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"plain forward and backward: {statistics.median(base):.3f} s")
    for name, found in ratios.items():
        low, high = min(found), max(found)
        print(f"{name}: {statistics.median(found):.2f} times that ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
