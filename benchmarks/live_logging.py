"""What live logging costs at one recorded step in fifty, beside wandb.watch and TensorBoard.

    python benchmarks/live_logging.py                          # hw5net-4, a quarter of an hour
    python benchmarks/live_logging.py --workload gpt --rounds 20 --log save bare

Two copies of one network train in turn, one bare, one watched from the first step to the last, so
that what happens seldom (a diagnosis, a write) happens as seldom as in a training. Each round times
fifty steps of either and takes their ratio; the table shows the median of the ratios with the
quartiles, `all`, the ratio of the whole times, in which what is seldom counts, and `own`, the time
in gradscope's own code in the loop as a share of the bare time. `bare` beside bare shows the noise.
Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from recorder_overhead import WORKLOADS, OwnTime, Workload
from rich.console import Console
from rich.table import Table
from torch import nn

import gradscope

EVERY = 50
LIMIT = 1.01
"""Of the ratio, for gradscope."""

Attach = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Callable[[], None]]]
"""Attaches a log for a whole training; gives what is called after each backward pass."""


def nothing() -> None:
    """After a backward pass."""


def watched(**options: object) -> Attach:
    """gradscope, with its own options; what it tells goes nowhere."""

    @contextmanager
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
        with tempfile.TemporaryDirectory() as folder:
            save = {"save": Path(folder) / "run.parquet"} if "save" in options else {}
            with gradscope.watch(model, optimizer, every=EVERY, **(options | save)):
                yield nothing

    return attach


def wandb_watched(**options: object) -> Attach:
    """wandb.watch, offline; each step is logged, as its users do."""

    @contextmanager
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
        del optimizer
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
            run.watch(model, **options)
            yield lambda: run.log({"loss": 0.0})
            run.unwatch(model)
            run.finish()

    return attach


@contextmanager
def histograms(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
    """TensorBoard's add_histogram of every gradient, as often."""
    del optimizer
    from torch.utils.tensorboard import SummaryWriter

    done = 0

    def log() -> None:
        nonlocal done
        for name, parameter in model.named_parameters() if done % EVERY == 0 else ():
            if parameter.grad is not None:
                writer.add_histogram(name, parameter.grad)
        done += 1

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        yield log


def told(numbers: dict[str, float], step: int) -> None:
    """A log that keeps nothing."""


LOGS: dict[str, Attach] = {
    "bare": lambda _model, _optimizer: contextlib.nullcontext(nothing),
    "log": watched(log=told),
    "log-parameters": watched(log=told, detail="parameters"),
    "save": watched(save=True),
    "on-finding": watched(on_finding=lambda _change: None),
    "wandb-50": wandb_watched(log="gradients", log_freq=EVERY),
    "wandb-default": wandb_watched(),
    "tensorboard-50": histograms,
}


def fresh(name: str) -> Workload:
    """One network with its data, as every other of this name."""
    torch.manual_seed(0)
    return WORKLOADS[name]()


def measure(name: str, attach: Attach, rounds: int) -> dict[str, float]:
    """Ratios of a watched training to a bare one, fifty steps of either in turn."""
    bare, logged, own = fresh(name), fresh(name), OwnTime()
    times: dict[bool, list[float]] = {False: [], True: []}
    own_s = 0.0
    with own, attach(logged.model, logged.optimizer) as after_backward:
        for i in range(rounds + 1):
            for is_logged in (i % 2 == 0, i % 2 == 1):  # so that a drift favours neither
                load, extra = (logged, (after_backward,)) if is_logged else (bare, ())
                before = own.spent_s
                times[is_logged].append(sum(load.step(*extra) for _ in range(EVERY)))
                own_s += (own.spent_s - before) * (i > 0)
    plain, recorded = times[False][1:], times[True][1:]  # the first reads the structure
    ratios = [r / p for r, p in zip(recorded, plain, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": median,
        "low": low,
        "high": high,
        "all": sum(recorded) / sum(plain),
        "own": own_s / sum(plain),
        "bare_ms": 1e3 * statistics.median(plain) / EVERY,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=WORKLOADS, default=next(iter(WORKLOADS)))
    parser.add_argument("--log", nargs="+", choices=LOGS, default=list(LOGS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.simplefilter("ignore")
    console = Console()
    table = Table("log", "ratio", "quartiles", "all", "own")
    bare = []
    for name in options.log:
        try:
            row = measure(options.workload, LOGS[name], options.rounds)
        except ImportError as missing:
            console.print(f"left out: {name} ({missing})")
            continue
        console.print(f"{name}: {row['ratio']:.3f}, own {row['own']:.2%}", style="dim")
        bare.append(row["bare_ms"])
        table.add_row(
            name,
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['all']:.3f}",
            f"{row['own']:.2%}" if row["own"] else "",
        )
    table.title = (
        f"{options.workload}: bare step {statistics.median(bare):.1f} ms, {options.threads} "
        f"threads, one step in {EVERY}; limit for gradscope {LIMIT}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
