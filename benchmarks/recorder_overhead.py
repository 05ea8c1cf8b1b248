"""What recording costs: the step with each recorder over the bare step, interleaved in one process.

    python benchmarks/recorder_overhead.py                     # all workloads, a few minutes each
    python benchmarks/recorder_overhead.py --workload hw5net-4 --rounds 30
    python benchmarks/recorder_overhead.py --recorder gradscope-all gradscope-default --json

Each round times the bare step and the step with one recorder right after one another and takes
their ratio; the table shows the median of the ratios with the quartiles. Where the machine's noise
hides the difference, `own` tells the time spent inside the recorder's own code in further steps, as
a share of the bare step. `floor` is one read of all gradients at the memory bandwidth measured in
the same run. `memory` is what a scope that records everything holds after 70 recorded steps, found
by walking its objects. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gradscope
from gradscope.models import ModelConfig, build
from gradscope.recording import calls, outputs, scope
from gradscope.recording.device_meter import DeviceMeter
from gradscope.recording.host_meter import HostMeter
from gradscope.watching import DEFAULT_EVERY

Attach = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Callable[[], None]]]
"""Attaches a recorder; gives what has to be called after backward and before the optimizer."""


class Gpt(nn.Module):
    """A small GPT: 4 pre-norm layers of width 256, 4 heads, context 128, vocabulary 2,000."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(2000, 256), nn.Embedding(128, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, nn.LayerNorm(256), enable_nested_tensor=False)
        self.head = nn.Linear(256, 2000, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each position."""
        length = tokens.shape[1]
        x = self.token(tokens) + self.position(torch.arange(length, device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        return self.head(self.layers(x, mask=mask, is_causal=True)).flatten(0, 1)


@dataclass
class Workload:
    """A network, one batch, and an optimizer."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.inputs = self.model.to(device), self.inputs.to(device)
        self.targets = self.targets.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5, fused=True)

    def step(self, before_optimizer: Callable[[], None] = lambda: None) -> float:
        """One training step; its time in seconds."""
        if self.inputs.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.inputs), self.targets).backward()
        before_optimizer()
        self.optimizer.step()
        if self.inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def hw5net(batch: int) -> Workload:
    """The reference network, depth 32."""
    model = build(ModelConfig(name="hw5net", init="kaiming"), n_classes=5)
    return Workload(model, torch.randn(batch, 3, 64, 64), torch.randint(5, (batch,)))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "hw5net-4": lambda: hw5net(4),
    "hw5net-32": lambda: hw5net(32),
    "resnet50-8": lambda: Workload(
        torchvision.models.resnet50(), torch.randn(8, 3, 128, 128), torch.randint(1000, (8,))
    ),
    "gpt-4": lambda: Workload(Gpt(), torch.randint(2000, (4, 128)), torch.randint(2000, (512,))),
}


@contextmanager
def watch(
    model: nn.Module, optimizer: torch.optim.Optimizer, **options: object
) -> Iterator[Callable[[], None]]:
    """Watch with gradscope, with some options."""
    with gradscope.watch(model, optimizer, **options):
        yield lambda: None


@contextmanager
def item_loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
    """The loop that everybody writes: one norm().item() per parameter."""
    del optimizer
    yield lambda: [p.grad.norm().item() for p in model.parameters() if p.grad is not None] and None


@contextmanager
def wandb_watch(
    model: nn.Module, optimizer: torch.optim.Optimizer, what: str
) -> Iterator[Callable[[], None]]:
    """wandb.watch at every step, offline; a log call ends each step as its users write it."""
    del optimizer
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        run.watch(model, log=what, log_freq=1)
        yield lambda: run.log({"loss": 0.0})
        run.unwatch(model)
        run.finish()


@contextmanager
def tensorboard_histograms(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[Callable[[], None]]:
    """add_histogram of every gradient at every step."""
    del optimizer
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)

        def log() -> None:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    writer.add_histogram(name, parameter.grad)

        yield log
        writer.close()


@contextmanager
def torch_instruments(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[Callable[[], None]]:
    """TorchInstruments with its default statistics at every step."""
    del optimizer
    from torchinstruments import inject_observer, remove_observer

    with tempfile.TemporaryDirectory() as folder:
        inject_observer(model, interval=timedelta(microseconds=1), output_dir=folder)
        yield lambda: None
        remove_observer(model)


RECORDERS: dict[str, tuple[Attach, str]] = {
    "gradscope-gradients": (
        lambda m, o: watch(m, o, every=1, activations=False),
        "every step, parameter gradients",
    ),
    "gradscope-norms": (
        lambda m, o: watch(m, o, every=1, norms_only=True),
        "every step, norms of gradients, outputs and theirs",
    ),
    "gradscope-all": (lambda m, o: watch(m, o, every=1), "every step, all statistics"),
    "gradscope-default": (watch, "default sampling"),
    "item-loop": (item_loop, "norm().item() per parameter"),
    "wandb-gradients": (lambda m, o: wandb_watch(m, o, "gradients"), "wandb.watch, log_freq=1"),
    "wandb-all": (lambda m, o: wandb_watch(m, o, "all"), "wandb.watch(log='all'), log_freq=1"),
    "tensorboard": (tensorboard_histograms, "add_histogram per parameter"),
    "torchinstruments": (torch_instruments, "default statistics, every step"),
}

FIRST = 3
"""Steps before those that are measured; the first reads the structure."""

SLOW = ("wandb-gradients", "wandb-all", "tensorboard", "torchinstruments")


class OwnTime:
    """Time spent inside gradscope's callbacks, at their outermost entry, while it is entered."""

    ENTRIES = (
        (outputs.ForwardReader, "_root_gradient"),
        (scope.Scope, "_after_backward"),
        (scope.Scope, "_before_step"),
        (scope.Scope, "_after_step"),
        *((calls._Call, name) for name in ("_enter", "saw", "_again")),
    )

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> Self:
        self.spent_s = 0.0
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in self.ENTRIES]
        for owner, name, original in self._originals:
            setattr(owner, name, self._timed(original))
        for meter in (HostMeter, DeviceMeter):  # made once, called for each gradient
            make = meter.gradient_reader
            self._originals.append((meter, "gradient_reader", make))
            meter.gradient_reader = lambda *args, make=make, **how: self._timed(make(*args, **how))
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    def _timed(self, function: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent_s += time.perf_counter() - start

        return timed


def bandwidth() -> float:
    """Bytes per second at which this machine reads memory: the best of several sums of 256 MiB."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block = torch.ones(2**26, device=device)
    best = float("inf")
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        block.sum()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 4 / best


def memory(load: Workload) -> tuple[int, int]:
    """Bytes that all tensors and all other objects hold that only the recorder refers to."""
    with gradscope.watch(load.model, load.optimizer, every=1) as scope:
        for _ in range(70):
            load.step()
        seen = {id(p) for p in load.model.parameters()}
        apart = (type, types.ModuleType, nn.Module, torch.optim.Optimizer)
        waiting: list[object] = [scope]
        tensors = others = 0
        while waiting:
            held = waiting.pop()
            if id(held) in seen or isinstance(held, apart):
                continue
            seen.add(id(held))
            if isinstance(held, Tensor):
                storage = held.untyped_storage()
                tensors += 0 if storage.data_ptr() in seen else storage.nbytes()
                seen.add(storage.data_ptr())
            elif isinstance(held, types.FunctionType):
                waiting += [cell.cell_contents for cell in held.__closure__ or ()]
            else:
                others += sys.getsizeof(held)
                waiting += gc.get_referents(held)
    return tensors, others


def measure(
    load: Workload, attach: Attach, rounds: int, steps: int, *, ours: bool
) -> dict[str, float]:
    """Paired ratios of one recorder on one workload, each of mean times over some steps."""
    ratios, bare, shares, own = [], [], [], OwnTime()
    with attach(load.model, load.optimizer):  # first use: imports, buffers, structure
        load.step()
    for i in range(rounds):
        plain = recorded = 0.0
        for attached in (i % 2 == 0, i % 2 == 1):  # in turn, so that a drift favours neither
            if attached:
                with attach(load.model, load.optimizer) as before_optimizer:
                    for _ in range(FIRST):
                        load.step(before_optimizer)
                    recorded = statistics.fmean(load.step(before_optimizer) for _ in range(steps))
            else:
                for _ in range(FIRST):
                    load.step()
                plain = statistics.fmean(load.step() for _ in range(steps))
        if ours:  # apart, because measuring costs too
            with own, attach(load.model, load.optimizer):
                for _ in range(FIRST):
                    load.step()
                own.spent_s = 0.0
                for _ in range(steps):
                    load.step()
            shares.append(own.spent_s / steps / plain)
        ratios.append(recorded / plain)
        bare.append(plain)
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "bare_ms": 1e3 * statistics.median(bare),
        "ratio": median,
        "low": low,
        "high": high,
        "own": statistics.median(shares) if shares else float("nan"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--recorder", nargs="+", choices=RECORDERS, default=list(RECORDERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6, help="steps a round, of which the mean")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.simplefilter("ignore")
    bytes_per_s = bandwidth()
    found: dict[str, dict[str, dict[str, float]]] = {}
    console = Console(stderr=options.json)
    for name in options.workload:
        torch.manual_seed(0)
        load = WORKLOADS[name]()
        for _ in range(3):
            load.step()
        gradients = [p.grad for p in load.model.parameters() if p.grad is not None]
        n_bytes = sum(g.numel() * g.element_size() for g in gradients)
        rows = found[name] = {}
        for recorder_name in options.recorder:
            attach, _ = RECORDERS[recorder_name]
            rounds = max(3, options.rounds // 3) if recorder_name in SLOW else options.rounds
            with contextlib.suppress(ImportError):
                steps = DEFAULT_EVERY if recorder_name == "gradscope-default" else options.steps
                ours = recorder_name.startswith("gradscope")
                rows[recorder_name] = measure(load, attach, rounds, steps, ours=ours)
                console.print(
                    f"{name} {recorder_name}: {rows[recorder_name]['ratio']:.3f}", style="dim"
                )
        bare = statistics.median(row["bare_ms"] for row in rows.values())
        floor = 1e3 * n_bytes / bytes_per_s / bare
        table = Table(
            title=f"{name}: bare step {bare:.1f} ms, {len(gradients)} gradients of "
            f"{n_bytes / 1e6:.0f} MB, {options.threads} threads; floor {1 + floor:.3f}"
        )
        for heading in ("recorder", "what", "ratio", "quartiles", "own code"):
            table.add_column(
                heading, justify="left" if heading in ("recorder", "what") else "right"
            )
        for recorder_name, row in rows.items():
            table.add_row(
                recorder_name,
                RECORDERS[recorder_name][1],
                f"{row['ratio']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['own']:.1%}" if row["own"] == row["own"] else "",
            )
        console.print(table)
        tensors, others = memory(load)
        n = sum(1 for _ in load.model.parameters())
        console.print(
            f"memory: {tensors / 1e6:.2f} MB in tensors, {others / 1e6:.2f} MB in other objects; "
            f"{(tensors + others) / n / 1e3:.0f} KB for each of {n} parameters"
        )
        missing = [r for r in options.recorder if r not in rows]
        if missing:
            console.print(f"left out, not installed: {', '.join(missing)}")
    if options.json:
        json.dump({"bytes_per_s": bytes_per_s, "workloads": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
