"""A running training on a terminal, within 80 columns: what the ``follow`` command shows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gradscope.cli.probe_tables import shortened
from gradscope.diagnosis.flow import gradient_flow, weight_profile
from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import Diagnosis, Finding, Severity
from gradscope.trace.structure import Block
from gradscope.trace.table import Trace
from gradscope.trace.vocabulary import place_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_BARS = "▁▂▃▄▅▆▇█"
_BAR_COLUMNS = 14
_CURVE_COLUMNS = 40
_FEWEST_ROWS = 6
"""Blocks that are shown however low the terminal is."""

_STYLE = {"error": "bold red", "warning": "yellow"}


@dataclass(frozen=True)
class Followed:
    """A file of a training as it was read, and what it says."""

    path: Path
    time: float
    """When it was written, seconds since the epoch."""
    trace: Trace
    diagnosis: Diagnosis

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read and judge.

        Raises:
            TraceError: it is no file of gradscope.
        """
        written = cls.written(path)  # before it is read: what is newer is then read again
        trace = Trace.load(path)
        return cls(path, written or 0.0, trace, diagnose(trace))

    @staticmethod
    def written(path: Path) -> float | None:
        """When the file was written; None where it is gone."""
        try:
            return path.stat().st_mtime
        except OSError:
            return None

    @property
    def is_running(self) -> bool:
        """Whether the scope was not closed yet, as far as the file knows."""
        return bool(self.trace.metadata.get("running"))

    def view(self, width: int, height: int | None = None) -> RenderableType:
        """All of it; blocks in the middle are left out where the height does not do."""
        head = [self._head(), *_curves(self.trace)]
        found = list(_findings(self.diagnosis))
        lines = sum(len(part.plain) // width + 1 for part in (*head, *found))
        most = None if height is None else max(_FEWEST_ROWS, height - lines - 4)
        return Group(*head, Text(), _table(rows(self.trace), width, most), Text(), *found)

    def _head(self) -> Text:
        steps = self.trace.steps
        at = f"step {steps[-1].step:,}, epoch {steps[-1].epoch}" if steps else "no step yet"
        age = max(0.0, time.time() - self.time)
        state = f"running, written {_lasting(age)} ago" if self.is_running else "closed"
        style = {"healthy": "bold green", "inconclusive": "bold yellow"}
        verdict = self.diagnosis.verdict.value
        return Text.assemble(
            (shortened(self.path.name, 30), "bold"),
            f"  {at}  {state}\nverdict: ",
            (verdict, style.get(verdict, "bold red")),
        )


@dataclass(frozen=True)
class Row:
    """One block, or one layer where outputs were not recorded."""

    name: str
    log10_grad: float
    """Of the gradient at its output, else of its weight; mean over the last quarter of the steps"""
    chi: float
    """Factor on it from the block before; NaN for the first."""
    update: float
    """Norm of the last update of its parameters / norm of these."""
    rms: float
    """Of the last output that leaves it."""
    dead: float
    """The largest share of dead units in it."""


def rows(trace: Trace) -> list[Row]:
    """The blocks from the input to the output, as they are now."""
    if not trace.steps:
        return []
    stretch = slice(-max(1, len(trace.steps) // 4), None)
    flow = gradient_flow(trace, stretch)
    names, grads, chis = flow.blocks, flow.log10_grad, (math.nan, *flow.chi)
    if not names:
        profile = weight_profile(trace, stretch)
        names, grads = profile.layers, profile.log10_grad
        chis = (math.nan,) * len(names)
    known = {tensor.name: _alone(tensor.module, tensor.call) for tensor in trace.tensors}
    known |= {block.name: block for block in trace.structure.blocks}
    return [
        Row(name, grad, chi, *_now(trace, known.get(name) or _alone(name)))
        for name, grad, chi in zip(names, grads, chis, strict=True)
    ]


def _alone(module: str, call: int = 0) -> Block:
    return Block(module, "", (module,), module, call, is_cut=True)


def _now(trace: Trace, block: Block) -> tuple[float, float, float]:
    """Update ratio, rms and dead share of a block at the last recorded step."""
    update, weight, rms, dead = [], [], math.nan, math.nan
    inside = {*block.modules, block.output}
    last = trace.values[-1].tolist()
    for tensor, values in zip(trace.tensors, last, strict=True):
        if tensor.module not in inside:
            continue
        ratio, norm = values[place_of("update_ratio")], values[place_of("weight_norm")]
        if tensor.kind == "weight" and not math.isnan(ratio * norm):
            update.append(ratio * norm)
            weight.append(norm)
        share = values[place_of("dead_fraction")]
        if not math.isnan(share):
            dead = share if math.isnan(dead) else max(share, dead)
        if (tensor.kind, tensor.module, tensor.call, tensor.output) == (
            *("activation", block.output, block.call),
            0,
        ):
            rms = values[place_of("rms")]
    moved = math.hypot(*update) / math.hypot(*weight) if any(weight) else math.nan
    return moved, rms, dead


def _table(shown: Sequence[Row], width: int, most: int | None) -> RenderableType:
    if not shown:
        return Text("no gradient was recorded yet", style="dim")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("block", "log10 |grad|"):
        table.add_column(title, no_wrap=True)
    for title in ("", "chi", "update", "rms", "dead"):
        table.add_column(title, justify="right", no_wrap=True)
    grads = [row.log10_grad for row in shown if math.isfinite(row.log10_grad)]
    low, high = min(grads, default=0.0), max(grads, default=0.0)
    scale = (_BAR_COLUMNS - 1) / max(high - low, 1.0)
    cut = (
        range(0) if most is None or len(shown) <= most else range(most // 2, len(shown) - most // 2)
    )
    for i, row in enumerate(shown):
        if i in cut:
            if i == cut[0]:
                table.add_row("...", Text(f"{len(cut)} more", style="dim"))
            continue
        known = math.isfinite(row.log10_grad)
        bar = "█" * (1 + round((row.log10_grad - low) * scale)) if known else ""
        table.add_row(
            Text(shortened(row.name, max(16, width - 58))),
            Text(bar, style="cyan"),
            f"{row.log10_grad:.2f}" if known else "",
            _number(row.chi),
            _number(row.update),
            _number(row.rms),
            "" if math.isnan(row.dead) else f"{row.dead:.0%}",
        )
    return table


def _curves(trace: Trace) -> Iterator[Text]:
    """The loss as a curve, and what was logged last."""
    losses = [step.loss for step in trace.steps if step.loss is not None]
    if losses:
        yield Text(f"loss {_number(losses[-1])}  {_curve(losses)}")
    told = [
        f"{shortened(name, 24)} {_number(series[-1][1])}"
        for name, series in trace.logged.items()
        if series and name != "loss"
    ]
    if told:
        yield Text("  ".join(told[:6]), style="dim")


def _curve(values: Sequence[float]) -> str:
    """Blocks as high as the means of even stretches; what is not finite is left blank."""
    count = min(len(values), _CURVE_COLUMNS)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    known = [mean for mean in means if math.isfinite(mean)]
    low = min(known, default=0.0)
    span = (max(known, default=0.0) - low) or 1.0
    return "".join(
        _BARS[round((mean - low) / span * (len(_BARS) - 1))] if math.isfinite(mean) else " "
        for mean in means
    )


def _findings(diagnosis: Diagnosis) -> Iterator[Text]:
    """Errors and warnings with since when and what to do, a line or two each."""
    told = [f for f in diagnosis.findings if f.severity is not Severity.INFO]
    for finding in told:
        yield _finding(finding)
        if finding.remedy:
            yield Text(f"    {finding.remedy}", style="italic")
    if not told:
        yield Text("no warning, no error", style="dim")


def _finding(finding: Finding) -> Text:
    since = "" if finding.since is None else f", since step {finding.since:,}"
    return Text.assemble(
        (f"[{finding.severity.value}] {finding.kind}", _STYLE[finding.severity.value]),
        f" at {finding.where}{since}",
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _lasting(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
