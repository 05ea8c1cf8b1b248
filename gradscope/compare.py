"""Probing one or several networks by name: what the ``probe`` command does and prints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope.diagnosis import Diagnosis, Verdict, diagnose
from gradscope.errors import ConfigError
from gradscope.flow import GradientFlow, gradient_flow
from gradscope.models import ModelConfig, build
from gradscope.probing import probe
from gradscope.remedies import Remedies, try_remedies
from gradscope.trace import Prediction, Trace

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


def build_models(
    specs: Sequence[str], args: Sequence[str] = (), n_classes: int | None = None, seed: int = 0
) -> dict[str, nn.Module]:
    """Build every network, so that a wrong name fails before any is run.

    Args:
        specs: built-in names or ``package.module:factory``.
        args: ``name=value`` for all factories; values are YAML.
        n_classes: for factories that take it.
        seed: of the initialisation.

    Raises:
        ConfigError: an argument is not ``name=value``.
        ModelError: a network cannot be found or built.
    """
    parsed = dict(_argument(text) for text in args)
    return {
        spec: build(ModelConfig(name=spec, args=parsed), n_classes=n_classes, seed=seed)
        for spec in specs
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


def gather(
    shapes: Sequence[str],
    batch: int,
    *,
    tokens: int | None = None,
    file: Path | None = None,
    grid: Path | None = None,
    seed: int = 0,
) -> tuple[Any, Tensor | None, int | None]:
    """Inputs from the one place that was named, with targets and number of classes if known.

    Raises:
        ConfigError: none or several of shapes, file and grid were given, or one cannot be read.
    """
    if sum((bool(shapes), file is not None, grid is not None)) != 1:
        raise ConfigError(
            "give the inputs by one of --input C,H,W (random), --input-file FILE.pt or "
            "--grid FILE.yaml (the images it trains on)"
        )
    if file is not None:
        return load_inputs(file), None, None
    if grid is not None:
        return grid_inputs(grid, batch, seed)
    return random_inputs(shapes, batch, tokens, seed), None, None


def grid_inputs(path: Path, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """A random batch of the images that a grid trains on, with labels, as the trainer sees them.

    Returns:
        float32 images in [-1, 1], int64 labels, number of classes.
    """
    from gradscope.ablation.grid import Grid
    from gradscope.data import load

    splits = load(Grid.load(path).cells()[0].config.data)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(splits.train), generator=generator)[:batch]
    images, labels = splits.train.batch(chosen)
    return images.float().div_(127.5).sub_(1.0), labels.long(), len(splits.classes)


def numbered(path: Path | None, count: int) -> list[Path]:
    """One file name per network: ``flow.html``, or ``flow-1.html``, ``flow-2.html``, ..."""
    if path is None:
        return []
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def random_inputs(
    shapes: Sequence[str], batch: int, tokens: int | None = None, seed: int = 0
) -> Tensor | tuple[Tensor, ...]:
    """Standard normal inputs, or integers below `tokens`.

    Args:
        shapes: of one sample each, ``3,64,64``; several for several positional arguments.
        batch: samples.
        tokens: size of the vocabulary, for models that take integers.
        seed: of the values.

    Raises:
        ConfigError: a shape is not a list of positive integers.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for text in shapes:
        try:
            shape = (batch, *(int(part) for part in text.split(",") if part.strip()))
        except ValueError:
            shape = (0,)
        if min(shape) < 1:
            raise ConfigError(
                f"--input '{text}' with --batch {batch}: give the shape of one sample as positive "
                "integers, for example --input 3,64,64"
            )
        if tokens is None:
            drawn.append(torch.randn(shape, generator=generator))
        else:
            drawn.append(torch.randint(tokens, shape, generator=generator))
    return drawn[0] if len(drawn) == 1 else tuple(drawn)


def load_inputs(path: Path) -> Any:
    """Inputs with their batch dimension from a ``.pt`` or ``.npy`` file; no code in it is run.

    Raises:
        ConfigError: no such file, another kind of file, or one that holds more than tensors.
    """
    if not path.is_file():
        raise ConfigError(f"--input-file {path}: no such file; give a .pt or .npy file")
    if path.suffix not in (".npy", ".pt", ".pth"):
        raise ConfigError(f"--input-file {path}: unknown suffix; valid: .npy, .pt, .pth")
    try:
        found = _read(path)
    except Exception as error:  # whatever a broken file makes the readers raise
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"--input-file {path}: cannot be read as tensors alone ({reason}); "
            "write it with torch.save(tensor, ...) or numpy.save()"
        ) from error
    if isinstance(found, list):
        found = tuple(found)
    values = found.values() if isinstance(found, Mapping) else found
    if not isinstance(found, Tensor) and not all(isinstance(v, Tensor) for v in values):
        raise ConfigError(
            f"--input-file {path}: holds {type(found).__name__} of more than tensors; "
            "give a tensor, a tuple of tensors or a dict of tensors"
        )
    if isinstance(found, Tensor) and found.dtype in (torch.float64, torch.float16):
        found = found.float()
    return found


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        import numpy as np

        return torch.from_numpy(np.load(path, allow_pickle=False))
    return torch.load(path, map_location="cpu", weights_only=True)


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


def _argument(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--args '{text}': write name=value, for example --args depth=32")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--args '{text}': the value is not YAML; quote it") from error


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
