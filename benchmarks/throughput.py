"""Trained images per second: a grid of four HW5Net cells, in every way, against the plain loop.

The grid runs through `run_grid` with the local engine, as `gradscope run-grid` does: its time is
that of everything, from starting the processes over recording and validation to the last file. The
ways are fp32 and bf16, each with one process that has all cores and with several that share them;
`auto` times a few steps of each and chooses one of them. The plain loop of the write-up (fp32,
NCHW, all cores as threads, Adam in its default implementation, nothing recorded) is timed bare. All
take turns, so that what else the machine does meets each of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from gradscope.ablation import Grid, run_grid
from gradscope.ablation.choice import choose
from gradscope.ablation.grid import Cell
from gradscope.ablation.layout import layouts
from gradscope.ablation.ways import Way
from gradscope.data import Splits, load
from gradscope.models import build

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco5"
LAST = 20
"""The final loss is the mean over so many last steps."""


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="example: python benchmarks/throughput.py --images 500 --rounds 2",
    )
    parser.add_argument("--images", type=int, default=1000, help="training images per cell")
    parser.add_argument("--plain-images", type=int, help="of the plain loop; default: --images")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every way")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--coco",
        type=Path,
        default=Path(os.environ.get("GRADSCOPE_COCO", COCO)),
        help="COCO folder; without one the demo set is used",
    )
    return parser.parse_args()


def make_grid(asked: argparse.Namespace, folder: Path) -> Grid:
    """Four cells that do the same work: two initialisations, two learning rates."""
    per_class = -(-asked.images // 5)
    data = {"train_per_class": per_class, "val_per_class": 40}
    data |= (
        {"source": "coco", "root": str(asked.coco)} if asked.coco.is_dir() else {"source": "demo"}
    )
    path = folder / "throughput.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "throughput",
                "model": {"name": "hw5net", "args": {"depth": 32}},
                "data": data,
                "train": {"batch_size": asked.batch_size, "precision": "auto"},
                "resources": {"cpus": "auto"},
                "record": {"every": 10},
                "seeds": [0],
                "matrix": {"model.init": ["kaiming", "xavier"], "train.lr": [1e-3, 2e-5]},
            }
        )
    )
    return Grid.load(path)


class PlainLoop:
    """The training loop of the write-up, for as many steps as asked for at a time."""

    def __init__(self, cell: Cell, splits: Splits) -> None:
        config = cell.config
        self._data = splits.train
        self._model = build(config.model, len(splits.classes), config.seed).train()
        self._optimizer = torch.optim.Adam(
            self._model.parameters(), lr=config.train.lr, betas=config.train.betas
        )
        order = torch.randperm(
            len(splits.train), generator=torch.Generator().manual_seed(config.seed)
        )
        self._batches = order.split(config.train.batch_size)
        self.losses: list[float] = []
        self.images = 0

    def run(self, images: int) -> float:
        """Train on so many more images; images per second."""
        started, before = time.perf_counter(), self.images
        while self.images - before < images:
            indices = self._batches[len(self.losses) % len(self._batches)]
            pixels = self._data.images[indices].float() / 127.5 - 1
            self._optimizer.zero_grad()
            loss = functional.cross_entropy(self._model(pixels), self._data.labels[indices])
            loss.backward()
            self._optimizer.step()
            self.losses.append(loss.item())
            self.images += len(indices)
        return (self.images - before) / (time.perf_counter() - started)


def rate_of(way: Way, grid: Grid, runs: Path) -> tuple[float, list[str]]:
    """Images per second of the whole grid, and the final loss of each cell."""
    needs = grid.resources.model_copy(update={"cpus": way.layout.threads})
    settled = grid.settled(way.precision, needs)
    started = time.perf_counter()
    study = run_grid(settled, runs, jobs=way.layout.jobs)
    grid_s = time.perf_counter() - started
    losses = []
    for result in study.results:
        if result.status != "done":
            raise SystemExit(f"{result.id}: {result.status}: {result.error}")
        losses.append(f"{final(result.history.step_loss):.3f}")
    steps = sum(r.history.epochs[-1].step for r in study.results)
    return steps * settled.cells()[0].config.train.batch_size / grid_s, losses


def main() -> None:
    """Measure, and print images per second, ratios to the plain loop and the final losses."""
    asked = arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        grid = make_grid(asked, Path(folder))
        cell = grid.cells()[0]
        splits = load(cell.config.data)  # prepared and cached: loading is not what is compared
        every_layout = layouts(grid, None)
        ways = [Way(p, layout) for p in ("fp32", "bf16") for layout in every_layout]
        plain = PlainLoop(cell, splits)
        plain.run(2 * asked.batch_size)
        started = time.perf_counter()
        chosen = choose(grid, None, lambda *_: None)
        timing_s = time.perf_counter() - started
        rates: dict[Way, list[float]] = {way: [] for way in ways}
        losses: dict[Way, list[str]] = {}
        bare: list[float] = []
        for turn in range(asked.rounds):
            bare.append(plain.run(asked.plain_images or asked.images))
            for i, way in enumerate(ways[:: 1 - 2 * (turn % 2)]):
                rate, losses[way] = rate_of(way, grid, Path(folder) / f"runs-{turn}-{i}")
                rates[way].append(rate)
    plain_rate = statistics.median(bare)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, data: {splits.source}, 4 cells")
    print(f"plain loop: {listed(bare)} images/s; final loss {final(plain.losses):.3f}")
    for way in ways:
        ratio = statistics.median(rates[way]) / plain_rate
        print(
            f"{way}: {listed(rates[way])} images/s, ratio {ratio:.2f}; "
            f"final losses {', '.join(losses[way])}"
        )
    best = max(ways, key=lambda way: statistics.median(rates[way]))
    auto = next(
        way for way in ways
        if (way.precision, way.layout.threads) == (chosen.precision, chosen.cpus)
    )  # fmt: skip
    share = statistics.median(rates[auto]) / statistics.median(rates[best])
    print(f"auto: {auto}, after {timing_s:.0f} s of timing: {chosen.why}")
    print(
        f"auto is {share:.2f} times the best of them ({best}), "
        f"{statistics.median(rates[auto]) / plain_rate:.2f} times the plain loop"
    )


def listed(rates: list[float]) -> str:
    """Each rate, in the order in which they were measured."""
    return " and ".join(f"{rate:.1f}" for rate in rates)


def final(losses: list[float] | tuple[float, ...]) -> float:
    """Mean of the last losses."""
    return statistics.fmean(losses[-LAST:])


if __name__ == "__main__":
    main()
