"""What recording costs in this checkout and in another one, on the same network in one process.

    git worktree add ../before v0.1.0 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/overhead_against.py ../before
    python benchmarks/overhead_against.py ../before --workload hw5net-4 --rounds 60 --json

Both copies of the package are loaded side by side, each with its own compiled part. Each round
times the bare step and the step with either copy right after one another, in an order that turns
from round to round; the table shows the medians of the paired ratios with their quartiles, and of
this over the other with the 95 % interval of its median (by signs, whatever the distribution).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from recorder_overhead import FIRST, WORKLOADS, Workload
from rich.console import Console
from rich.table import Table
from scipy import stats

OPTIONS: dict[str, dict[str, object]] = {
    "gradients": {"every": 1, "activations": False},
    "norms": {"every": 1, "norms_only": True},
    "all": {"every": 1},
    "unrecorded": {"every": 10**6},
}
"""Recorder -> options of `watch` that both copies know; the last for the steps in between."""


class Copy:
    """The package as it lies in one checkout, beside another that is loaded already."""

    def __init__(self, root: Path) -> None:
        if not (root / "gradscope" / "__init__.py").is_file():
            sys.exit(f"{root}: no checkout of gradscope; give the folder that holds gradscope/")
        self._root = str(root.resolve())
        self._modules: dict[str, ModuleType] = {}
        with self.current():
            self._package = importlib.import_module("gradscope")
            assert Path(str(self._package.__file__)).is_relative_to(self._root)
            self._package.watch  # noqa: B018 - a lazy name: importing it is the point
            kernels = any(name.endswith("_kernels") for name in sys.modules if _ours(name))
        self.kernels = "compiled part" if kernels else "torch alone"

    @contextmanager
    def current(self) -> Iterator[None]:
        """While it is entered, `gradscope` is this copy, also for imports on first use."""
        others = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
        sys.modules.update(self._modules)
        sys.path.insert(0, self._root)
        try:
            yield
        finally:
            sys.path.remove(self._root)
            self._modules = {
                name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)
            }
            sys.modules.update(others)

    def step_s(self, load: Workload, options: dict[str, object], steps: int) -> float:
        """Mean seconds of a step that this copy watches."""
        with self.current(), self._package.watch(load.model, load.optimizer, **options):
            return step_s(load, steps)


def _ours(name: str) -> bool:
    return name == "gradscope" or name.startswith("gradscope.")


def step_s(load: Workload, steps: int) -> float:
    """Mean seconds of a step, after a few that do not count."""
    for _ in range(FIRST):
        load.step()
    return statistics.fmean(load.step() for _ in range(steps))


def measure(
    load: Workload, copies: dict[str, Copy], options: dict[str, object], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds of the bare step and of that with each copy, round by round."""
    names = ["bare", *copies]
    found: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, rounds):  # the first round warms up
        for name in names[i % 3 :] + names[: i % 3]:
            copy = copies.get(name)
            taken = step_s(load, steps) if copy is None else copy.step_s(load, options, steps)
            if i >= 0:
                found[name].append(taken)
    return found


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median of the paired ratios, its quartiles, and the 95 % interval of the median by signs."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4)
    rank = max(int(stats.binom.ppf(0.025, len(ratios), 0.5)), 1)
    return {
        "ratio": median, "low": low, "high": high,
        "from": ratios[rank - 1], "to": ratios[-rank],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout, its compiled part built")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["hw5net-4"])
    parser.add_argument("--recorder", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=6, help="steps of which each time is the mean")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    console = Console(stderr=options.json)
    copies = {"other": Copy(options.other), "this": Copy(Path(__file__).parents[1])}
    told = ", ".join(f"{name}: {copy.kernels}" for name, copy in copies.items())
    everything: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for workload in options.workload:
        torch.manual_seed(0)
        load = WORKLOADS[workload]()
        table = Table(
            title=f"{workload}, {options.threads} threads, {options.rounds} rounds; {told}"
        )
        for heading in ("recorder", "other / bare", "this / bare", "this / other", "95 %"):
            table.add_column(heading, justify="left" if heading == "recorder" else "right")
        rows = everything[workload] = {}
        for recorder in options.recorder:
            taken = measure(load, copies, OPTIONS[recorder], options.rounds, options.steps)
            pairs = (("other", "bare"), ("this", "bare"), ("this", "other"))
            row = {f"{a}/{b}": ratio(taken[a], taken[b]) for a, b in pairs}
            rows[recorder] = row
            cells = [f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in row.values()]
            interval = "{from:.3f} to {to:.3f}".format_map(row["this/other"])
            table.add_row(recorder, *cells, interval)
            console.print(f"{workload} {recorder}: {row['this/other']['ratio']:.4f}", style="dim")
        console.print(table)
    if options.json:
        json.dump(everything, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
