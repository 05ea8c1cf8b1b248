"""What a cell costs over its own time: many very short ones, through `run_grid` on this machine.

Each cell trains a line for a few steps under `run.watch`, in a function that times itself. The time
of the grid is that of everything: from starting the processes over claims, traces and results to
the last file, and reading the study again. Its share of one process, less what the functions took,
is the overhead. Processor time is told besides, since a busy machine does not lengthen it: of a
process from one cell to the next, and of the one that hands them out; the disk is not in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import torch
import yaml

from gradscope import Run
from gradscope.ablation import Grid, run_grid
from gradscope.study.results import Study

STEPS = 5


def train(run: Run) -> None:
    """Fit a line; sleep besides, as long as the cell asks for."""
    started, cpu = time.perf_counter(), time.process_time()
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(step, loss=loss)
    time.sleep(run.config.train.args["sleep_s"])
    own_cpu_s = time.process_time() - cpu
    run.log(STEPS - 1, pid=os.getpid(), cpu_s=cpu, own_cpu_s=own_cpu_s)
    run.log(STEPS - 1, own_s=time.perf_counter() - started)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="example: python benchmarks/cells.py 200 --sleep 1 --engine ray",
    )
    parser.add_argument("cells", type=int, nargs="?", default=1000, help="how many")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that each sleeps besides")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    return parser.parse_args()


def make_grid(asked: argparse.Namespace, folder: Path) -> Grid:
    """Cells that differ by their number alone."""
    path = folder / "cells.yaml"
    args = {"number": 0, "sleep_s": asked.sleep}
    path.write_text(
        yaml.safe_dump(
            {
                "name": "cells",
                "train": {"function": "cells:train", "args": args},
                "objectives": {"loss": "min"},
                "seeds": [0],
                "matrix": {"train.args.number": list(range(asked.cells))},
            }
        )
    )
    return Grid.load(path)


def between_s(study: Study) -> float:
    """Processor time of a process from one cell to the next, less what the functions took."""
    told = sorted(
        tuple(r.history.last(name) for name in ("pid", "cpu_s", "own_cpu_s")) for r in study.results
    )
    spent = [
        later[1] - earlier[1] - earlier[2]
        for _, cells in groupby(told, itemgetter(0))
        for earlier, later in pairwise(cells)
    ]
    return statistics.mean(spent)


def main() -> None:
    """Measure, and print the overhead of one cell."""
    asked = arguments()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )  # Ray's processes find the function there
    with tempfile.TemporaryDirectory() as folder:
        grid = make_grid(asked, Path(folder))
        started, cpu = time.perf_counter(), time.process_time()
        study = run_grid(grid, Path(folder) / "runs", jobs=asked.jobs, engine=asked.engine)
        grid_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    for result in study.results:
        if result.status != "done":
            raise SystemExit(f"{result.id}: {result.status}: {result.error}")
    n = len(study.results)
    own_s = sum(result.history.last("own_s") for result in study.results) / n
    each_s = grid_s * min(asked.jobs, n) / n
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, {asked.jobs} processes, {asked.engine}"
    )
    print(f"{n} cells in {grid_s:.1f} s: {1e3 * each_s:.1f} ms of one process each")
    print(f"the function itself: {1e3 * own_s:.1f} ms")
    print(f"overhead: {1e3 * (each_s - own_s):.1f} ms per cell")
    print(
        f"processor time: {1e3 * between_s(study):.1f} ms per cell in the process that trains, "
        f"{1e3 * cpu_s / n:.1f} ms in the one that hands out, reading the study included"
    )


if __name__ == "__main__":
    main()
