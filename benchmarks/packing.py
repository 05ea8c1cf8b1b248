"""Cells on one GPU: several at a time against one after the other, through `run_grid`.

The time of each is that of everything, from starting the processes to the last file, so that few
images overstate what a start costs. Where there is no GPU the processes share the cores instead,
which shows that the benchmark runs and nothing else.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import yaml

from gradscope.ablation import Grid, run_grid
from gradscope.data import load
from gradscope.engines.placement import cores, devices


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="example: python benchmarks/packing.py --together 1 2 4 8",
    )
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 8], help="at a time")
    parser.add_argument("--images", type=int, default=4000, help="training images per cell")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    return parser.parse_args()


def make_grid(asked: argparse.Namespace, together: int, folder: Path) -> Grid:
    """Cells that differ by their seed alone, so many to a GPU."""
    path = folder / "packing.yaml"
    needs = {"cpus": max(1, cores() // together), "gpus": 1 / together if devices() else 0}
    path.write_text(
        yaml.safe_dump(
            {
                "name": "packing",
                "model": {"name": "hw5net", "args": {"depth": 32}, "init": "kaiming"},
                "data": {
                    "source": "demo",
                    "train_per_class": -(-asked.images // 5),
                    "val_per_class": 20,
                },
                "train": {"batch_size": asked.batch_size, "precision": asked.precision},
                "record": {"every": 10},
                "resources": needs,
                "seeds": list(range(asked.cells)),
            }
        )
    )
    return Grid.load(path)


def main() -> None:
    """Measure, and print the time of each packing and its ratio to the first."""
    asked = arguments()
    if devices():  # one is shared, whatever else there is
        os.environ["CUDA_VISIBLE_DEVICES"] = devices()[0]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: cores are shared"
    print(f"torch {torch.__version__}, {name}, {cores()} cores")
    spent_s: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for together in asked.together:
            grid = make_grid(asked, together, Path(folder))
            images = len(load(grid.cells()[0].config.data).train)
            started = time.perf_counter()
            study = run_grid(grid, Path(folder) / f"runs-{together}", jobs=together)
            spent_s[together] = time.perf_counter() - started
            for result in study.results:
                if result.status != "done":
                    raise SystemExit(f"{result.id}: {result.status}: {result.error}")
            ratio = spent_s[asked.together[0]] / spent_s[together]
            rate = images * asked.cells / spent_s[together]
            print(
                f"{asked.cells} cells, {together} at a time: {spent_s[together]:.1f} s, "
                f"{rate:.0f} images/s, {ratio:.2f} times as fast as {asked.together[0]} at a time"
            )


if __name__ == "__main__":
    main()
