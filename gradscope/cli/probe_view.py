"""Probing one or several networks by name: what the ``probe`` command does and prints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope.cli import probe_tables as tables
from gradscope.diagnosis.draws import judge_draws
from gradscope.diagnosis.flow import GradientFlow, gradient_flow
from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import Diagnosis, Verdict
from gradscope.probing.isolation import call_model, preserved
from gradscope.probing.outcomes import Remedies
from gradscope.probing.probe import probe
from gradscope.probing.remedies import try_remedies
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
    """That the draw that is shown took."""
    draws: Mapping[int, Verdict]
    """Seed of each draw of the weights -> its verdict."""
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
            "draws": [{"seed": seed, "verdict": v.value} for seed, v in self.draws.items()],
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


def probe_draws(
    name: str,
    draws: Iterable[nn.Module],
    inputs: Any,
    targets: Any = None,
    *,
    seed: int = 0,
    steps: int = 1,
    remedies: bool = False,
) -> Probed:
    """Probe each draw of a network, judge them together, and if asked try what would mend it.

    Shown is the first draw that has the verdict of them all; remedies are tried on it.

    Args:
        name: of the network.
        draws: the network with its weights drawn once or several times.
        inputs: as for `probe`.
        targets: as for `probe`.
        seed: of the first draw, as for `probe`; the others count up from it.
        steps: as for `probe`.
        remedies: try them.
    """
    judged: dict[int, Diagnosis] = {}
    first: dict[Verdict, tuple[nn.Module, Trace, int, float]] = {}
    for at, model in enumerate(draws, start=seed):
        started = time.perf_counter()
        trace = probe(model, inputs, targets, seed=at, steps=steps)
        judged[at] = diagnose(trace)
        seconds = time.perf_counter() - started
        first.setdefault(judged[at].verdict, (model, trace, at, seconds))
    diagnosis = judge_draws(judged)
    model, trace, at, seconds = first[diagnosis.verdict]
    tried = try_remedies(model, inputs, targets, seed=at, steps=steps) if remedies else None
    with preserved(model, at), torch.no_grad():
        outputs = tuple(_outputs(call_model(model, inputs)))
    return Probed(
        name,
        trace,
        gradient_flow(trace),
        diagnosis,
        sum(p.numel() for p in model.parameters()),
        seconds,
        {at: each.verdict for at, each in judged.items()},
        outputs,
        tried,
    )


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
        if len(each.draws) > 1:
            parts.append(Text(f"\n{_draws(each)}", style="dim"))
        if each.remedies is not None:
            parts.append(tables.remedies_table(each.remedies, width))
    return Group(*parts)


def _draws(each: Probed) -> str:
    """How many draws of the weights got which verdict, and which of them is shown."""
    counts = Counter(each.draws.values()).most_common()
    told = ", ".join(f"{verdict.value} {count}" for verdict, count in counts)
    shown = each.trace.metadata["probe"]["seed"]
    return f"{len(each.draws)} draws of the weights: {told}; shown is seed {shown}"


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
