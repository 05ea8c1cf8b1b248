"""Trained images per second: a grid of four HW5Net cells against the plain loop of the write-up.

The grid runs through `run_grid` with the local engine, as `gradscope run-grid` does: its time is
that of everything, from starting the processes over recording and validation to the last file. The
plain loop (fp32, NCHW, all cores as threads, Adam in its default implementation, nothing recorded)
is timed bare, half of it before the grid and half after; the ratio is to the faster half.
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
from gradscope.ablation.grid import Cell
from gradscope.data import Splits, load
from gradscope.models import build

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco5"
LAST = 20
"""The final loss is the mean over so many last steps."""


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="example: python benchmarks/throughput.py --images 1500",
    )
    parser.add_argument("--images", type=int, default=2500, help="training images per cell")
    parser.add_argument("--plain-images", type=int, help="of the plain loop; default: --images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the grid")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of the grid")
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
                "train": {"batch_size": asked.batch_size, "precision": asked.precision},
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
        torch.set_num_threads(os.cpu_count() or 1)
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


def main() -> None:
    """Measure, and print images per second, their ratio and the final losses."""
    asked = arguments()
    with tempfile.TemporaryDirectory() as folder:
        grid = make_grid(asked, Path(folder))
        cells = grid.cells()
        splits = load(cells[0].config.data)  # prepared and cached: loading is not what is compared
        plain = PlainLoop(cells[0], splits)
        half = (asked.plain_images or asked.images) // 2
        rates = [plain.run(half)]
        started = time.perf_counter()
        study = run_grid(grid, Path(folder) / "runs", jobs=asked.jobs)
        grid_s = time.perf_counter() - started
        rates.append(plain.run(half))
    for result in study.results:
        if result.status != "done":
            raise SystemExit(f"{result.id}: {result.status}: {result.error}")
    trained = sum(r.history.epochs[-1].step for r in study.results)
    images = len(splits.train) * sum(len(r.history.epochs) for r in study.results)
    grid_rate = images / grid_s
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, data: {splits.source}")
    print(
        f"plain loop: {plain.images} images, {rates[0]:.1f} images/s before the grid, "
        f"{rates[1]:.1f} after it"
    )
    if min(rates) < 0.8 * max(rates):
        print("the two differ by more than a fifth: the machine is busy, measure again")
    print(
        f"grid: {len(cells)} cells, {trained} steps, {images} images in {grid_s:.0f} s "
        f"= {grid_rate:.1f} images/s with {asked.jobs} processes, {asked.precision}"
    )
    print(f"ratio: {grid_rate / max(rates):.2f}")
    print(f"final loss (mean of the last {LAST} steps), plain loop: {final(plain.losses):.3f}")
    for result in study.results:
        said = "" if result.id != cells[0].id else " (the plain loop's cell)"
        print(f"final loss, {result.id}: {final(result.history.step_loss):.3f}{said}")


def final(losses: list[float] | tuple[float, ...]) -> float:
    """Mean of the last losses."""
    return statistics.fmean(losses[-LAST:])


if __name__ == "__main__":
    main()
