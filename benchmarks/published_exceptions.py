"""What the published networks that are called sick at initialisation lose by it.

    python benchmarks/published_exceptions.py [NAME ...] [--optimizer SGD] [--rates 1e-2]

Each is trained as it is and with the remedy of its finding, on the same small task; quoted is the
mean loss of the last tenth of the steps, at the better of the rates. The exceptions, their reasons
and remedies stand in `tests/published.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import published

from gradscope.nested import tensors_in

CLASSES = 10


def images(size: int, generator: torch.Generator) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of one coarse pattern for each class under as much noise."""
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=generator)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(CLASSES, (number,), generator=generator)
        noise = torch.randn(number, 3, size, size, generator=generator)
        return functional.interpolate(patterns[classes], size=size) + noise, classes

    return draw


def sequences(length: int, generator: torch.Generator) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of tokens of which each class has its own; told at the last, which tells nothing.

    So it takes attention.
    """

    def draw(number: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(CLASSES, (number,), generator=generator)
        tokens = 4 + torch.randint(5, (number, length), generator=generator) * CLASSES
        tokens += classes[:, None]
        tokens[:, -1] = 3
        return tokens, classes

    return draw


def losses(
    name: str, optimizer_of: str, rate: float, seed: int, steps: int, *, mended: bool
) -> list[float]:
    """The loss at each step of one training."""
    network = published.built(*published.split(name), seed=seed)
    if mended:
        network = published.SICK[name].mended(network)
    generator = torch.Generator().manual_seed(seed)
    named = isinstance(network.inputs, dict)
    key, batch = next(iter(network.inputs.items())) if named else ("", network.inputs)
    make = images if batch.is_floating_point() else sequences
    draw = make(batch.shape[-1], generator)
    model, found = network.model, []
    options = {"momentum": 0.9} if optimizer_of == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer_of)(
        model.parameters(), lr=rate, fused=True, **options
    )
    for _ in range(steps):
        inputs, classes = draw(16)
        output = tensors_in(model(**{key: inputs}) if named else model(inputs))[0]
        if output.dim() == 4:  # channels before places
            output = output.mean((2, 3))
        elif output.dim() == 3:
            output = output[:, -1]
        loss = functional.cross_entropy(output[:, :CLASSES].float(), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(published.SICK))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", choices=("AdamW", "SGD"), default="AdamW")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # what others' code says of itself
    last = max(options.steps // 10, 1)
    print(f"{'network':40}{'as it is':>18}{'mended':>18}  loss of the last {last} of the steps")
    for name in options.names:
        row = f"{name:40}"
        for mended in (False, True):
            found = {
                rate: [
                    statistics.fmean(
                        losses(name, options.optimizer, rate, seed, options.steps, mended=mended)[
                            -last:
                        ]
                    )
                    for seed in range(options.seeds)
                ]
                for rate in options.rates
            }
            best = min(found.values(), key=statistics.fmean)
            spread = statistics.stdev(best) if len(best) > 1 else 0.0
            row += f"{statistics.fmean(best):11.3f} +- {spread:.3f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
