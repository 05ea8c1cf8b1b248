"""Probing one or several networks by name: what the ``probe`` command does and prints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.flow import GradientFlow, gradient_flow
from gradscope.diagnosis.verdict import Diagnosis, Verdict
from gradscope.probing.probe import probe
from gradscope.probing.remedies import Remedies, try_remedies
from gradscope.trace.table import Prediction, Trace

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_SHOWN_BLOCKS = 40
"""Rows of the table of blocks; of a deeper network the first and the last half as many."""


@dataclass(frozen=True)
class Probed:
    """One network, probed."""

    name: str
    trace: Trace
    flow: GradientFlow
    diagnosis: Diagnosis
    parameters: int
    seconds: float
    remedies: Remedies | None = None

    @property
    def predictions(self) -> dict[str, Prediction]:
        """Name of a block -> what theory says about it."""
        return {prediction.module: prediction for prediction in self.trace.predictions}

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON types, with the flow and the remedies beside it."""
        predictions = self.predictions
        blocks = []
        for name, measured in zip(self.flow.blocks, (None, *self.flow.chi), strict=True):
            predicted = predictions.get(name)
            blocks.append(
                {
                    "block": name,
                    "chi": _number(measured),
                    "predicted_chi": _number(predicted.chi if predicted else None),
                    "predicted_log_std": _number(predicted.log_std if predicted else None),
                    "prediction": predicted.reason if predicted else "",
                }
            )
        return {
            "model": self.name,
            **self.diagnosis.to_dict(),
            "parameters": self.parameters,
            "slope_decades_per_block": _number(self.flow.slope),
            "slope_interval": [_number(self.flow.slope_low), _number(self.flow.slope_high)],
            "blocks": blocks,
            "probe": self.trace.metadata.get("probe", {}),
            "seconds": round(self.seconds, 3),
            **({} if self.remedies is None else {"remedies": _remedies_dict(self.remedies)}),
        }


def probe_model(
    name: str,
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    seed: int = 0,
    steps: int = 1,
    remedies: bool = False,
) -> Probed:
    """Probe a network, judge it, and if asked try what would mend it."""
    started = time.perf_counter()
    trace = probe(model, inputs, targets, seed=seed, steps=steps)
    seconds = time.perf_counter() - started
    tried = None
    if remedies:
        tried = try_remedies(model, inputs, targets, seed=seed, steps=steps)
    parameters = sum(p.numel() for p in model.parameters())
    return Probed(name, trace, gradient_flow(trace), diagnose(trace), parameters, seconds, tried)


def numbered(path: Path | None, count: int) -> list[Path]:
    """One file name per network: ``flow.html``, or ``flow-1.html``, ``flow-2.html``, ..."""
    if path is None:
        return []
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def summary(probed: Sequence[Probed]) -> RenderableType:
    """What the command prints: a table of models or of blocks, then what was found."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if len(probed) > 1:
        parts.append(_models_table(probed))
    for each in probed:
        parts.append(Text(f"\n{each.name}", style="bold"))
        if len(probed) == 1:
            parts.append(_blocks_table(each))
        parts.append(each.diagnosis)
        if each.remedies is not None:
            parts.append(_remedies_table(each.remedies))
    return Group(*parts)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _models_table(probed: Sequence[Probed]) -> Table:
    table = _table(
        "model", "parameters", "blocks", "chi per block", "95 %", "decades", "predicted",
        "forward", "verdict",
    )  # fmt: skip
    for each in probed:
        flow = each.flow
        table.add_row(
            _plain(each.name),
            f"{each.parameters:,}",
            str(len(flow.blocks)),
            _chi(flow.slope),
            f"{_chi(flow.slope_low)} to {_chi(flow.slope_high)}",
            f"{flow.total:+.2f}",
            _signed(_predicted_total(each)),
            f"{flow.forward_total:+.2f}",
            _verdict(each.diagnosis.verdict),
        )
    table.caption = (
        "decades: log10 of the gradient norm at the first block over the last, measured and "
        "predicted; forward: of the activation rms at the last block over the first"
    )
    return table


def _blocks_table(probed: Probed) -> Table:
    table = _table("block", "type", "log10 |grad|", "chi", "predicted", "from")
    types = {block.name: block.type for block in probed.trace.structure.blocks}
    predictions = probed.predictions
    flow = probed.flow
    rows = list(zip(flow.blocks, flow.log10_grad, (math.nan, *flow.chi), strict=True))
    half = _SHOWN_BLOCKS // 2
    for i, (name, grad, chi) in enumerate(rows):
        if len(rows) > _SHOWN_BLOCKS and half <= i < len(rows) - half:
            if i == half:
                table.add_row("...", f"{len(rows) - 2 * half} more")
            continue
        predicted = predictions.get(name)
        table.add_row(
            _plain(name),
            _plain(types.get(name, "")),
            f"{grad:.2f}",
            "" if math.isnan(chi) else f"{chi:.3g}",
            _interval(predicted),
            _plain(predicted.reason.removeprefix("mean field: ") if predicted else ""),
        )
    table.caption = (
        "chi: gradient norm at the output of the block before over that of this block; "
        "predicted: mean field, 95 % at this width"
    )
    return table


def _remedies_table(remedies: Remedies) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    table = _table("", "remedy", "chi per block", "decades", "forward", "verdict", "what to do")
    for i, outcome in enumerate((remedies.baseline, *remedies.ranked)):
        table.add_row(
            str(i) if i else "",
            outcome.name,
            _chi(outcome.slope),
            _signed(outcome.accumulated),
            _signed(outcome.forward),
            _verdict(outcome.verdict) if outcome.verdict else "",
            outcome.change,
        )
    unfit = [
        Text(f"does not apply: {outcome.name}: {outcome.reason}", style="dim")
        for outcome in remedies.not_applicable
    ]
    return Group(Text("\nremedies, each tried on a copy", style="bold"), table, *unfit)


def _remedies_dict(remedies: Remedies) -> dict[str, Any]:
    def as_dict(outcome: Any) -> dict[str, Any]:
        return {
            "name": outcome.name,
            "change": outcome.change,
            "slope_decades_per_block": _number(outcome.slope),
            "decades": _number(outcome.accumulated),
            "forward_decades": _number(outcome.forward),
            "verdict": outcome.verdict.value if outcome.verdict else None,
            "reason": outcome.reason,
        }

    return {
        "baseline": as_dict(remedies.baseline),
        "ranked": [as_dict(outcome) for outcome in remedies.ranked],
        "not_applicable": [as_dict(outcome) for outcome in remedies.not_applicable],
        "best": remedies.best.name if remedies.best else None,
    }


def _predicted_total(probed: Probed) -> float:
    predictions = probed.predictions
    known = [predictions[name].chi for name in probed.flow.blocks[1:] if name in predictions]
    usable = len(known) == len(probed.flow.chi) and all(k > 0.0 for k in known)
    return sum(math.log10(k) for k in known) if usable else math.nan


def _interval(predicted: Prediction | None) -> str:
    if predicted is None or math.isnan(predicted.chi):
        return ""
    if not predicted.log_std:
        return f"{predicted.chi:.3g}"
    factor = math.exp(1.96 * predicted.log_std)
    return f"{predicted.chi:.3g} ({predicted.chi / factor:.2g} to {predicted.chi * factor:.2g})"


def _chi(log10: float) -> str:
    if math.isnan(log10):
        return ""
    return f"{10.0 ** max(min(log10, 300.0), -300.0):.3g}" if math.isfinite(log10) else "?"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else ""


def _verdict(verdict: Verdict) -> Any:
    from rich.text import Text

    styles = {Verdict.HEALTHY: "bold green", Verdict.INCONCLUSIVE: "bold yellow"}
    return Text(verdict.value, style=styles.get(verdict, "bold red"))


def _plain(text: str) -> Any:
    """Text that rich does not read markup in: names come from outside."""
    from rich.text import Text

    return Text(text)


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), caption_justify="left")
    right = {"parameters", "blocks", "decades", "forward", "log10 |grad|", "chi"}
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return table
