"""Probing one or several networks by name: what the ``probe`` command does and prints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope.cli import probe_tables as tables
from gradscope.diagnosis.flow import GradientFlow, gradient_flow
from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import Diagnosis
from gradscope.probing.isolation import call_model, preserved
from gradscope.probing.probe import probe
from gradscope.probing.remedies import Remedies, try_remedies
from gradscope.trace.table import Prediction, Trace

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Probed:
    """One network, probed."""

    name: str
    trace: Trace
    flow: GradientFlow
    diagnosis: Diagnosis
    parameters: int
    seconds: float
    outputs: tuple[tuple[str, tuple[int, ...], float], ...] = ()
    """Of every output of the network its place, shape and rms."""
    remedies: Remedies | None = None

    @property
    def predicted_total(self) -> float:
        """Decades that theory gives the whole depth; NaN where it says nothing of some block."""
        told = self.predictions
        known = [told[name].chi for name in self.flow.blocks[1:] if name in told]
        usable = len(known) == len(self.flow.chi) and all(k > 0.0 for k in known)
        return sum(math.log10(k) for k in known) if usable else math.nan

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
            "outputs": [
                {"output": name, "shape": list(shape), "rms": _number(rms)}
                for name, shape, rms in self.outputs
            ],
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
    flow, diagnosis = gradient_flow(trace), diagnose(trace)
    with preserved(model, seed), torch.no_grad():
        outputs = tuple(_outputs(call_model(model, inputs)))
    return Probed(name, trace, flow, diagnosis, parameters, seconds, outputs, tried)


def _outputs(output: Any, place: str = "output") -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Place, shape and rms of each tensor in what a model returned."""
    if isinstance(output, Tensor):
        rms = output.detach().abs().double().square().mean().sqrt().item()
        yield place, tuple(output.shape), rms
        return
    if isinstance(output, Mapping):
        parts = [(f"{place}[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(f"{place}[{i}]", value) for i, value in enumerate(output)]
    elif dataclasses.is_dataclass(output):
        fields = dataclasses.fields(output)
        parts = [(f"{place}.{f.name}", getattr(output, f.name)) for f in fields]
    else:
        parts = []
    for name, value in parts:
        yield from _outputs(value, name)


def numbered(path: Path | None, count: int) -> list[Path]:
    """One file name per network: ``flow.html``, or ``flow-1.html``, ``flow-2.html``, ..."""
    if path is None:
        return []
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def summary(probed: Sequence[Probed], width: int = 80) -> RenderableType:
    """What the command prints: a table of models or of blocks, then what was found.

    Args:
        probed: the networks.
        width: columns that there are.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if len(probed) > 1:
        parts.append(tables.models_table(probed, width))
    for each in probed:
        parts.append(Text(f"\n{each.name}", style="bold"))
        if len(probed) == 1:
            parts.append(tables.blocks_table(each, width))
        if len(each.outputs) > 1:
            parts += [Text(), tables.outputs_table(each, width)]
        parts += [Text(), tables.findings(each.diagnosis)]
        if each.remedies is not None:
            parts.append(tables.remedies_table(each.remedies, width))
    return Group(*parts)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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
