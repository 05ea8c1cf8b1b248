"""Profile: log10 gradient norms of a network per layer, with the tolerance that chance allows."""

from __future__ import annotations

import json
import math
import statistics
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gradscope.diagnosis.flow import gradient_flow, weight_profile
from gradscope.errors import ConfigError, TraceError
from gradscope.probing.probe import probe
from gradscope.seeding import seeded
from gradscope.trace.table import Trace

VERSION = 1

FALSE_ALARM = 1e-3
"""Chance that a profile of the same network with other seeds is taken for a changed one."""

ROUNDING = 1e-3
"""Decades by which profiles may always differ: another machine, thread count or patch version."""


@dataclass(frozen=True)
class Layer:
    """The gradient norm of one layer or block over several seeds."""

    name: str
    log10_norm: float | None
    """Mean over the seeds; None where the gradient is zero or absent."""
    std: float
    """Standard deviation over the seeds, in decades; 0 with a single one."""


NO_LAYER = Layer("", None, 0.0)


@dataclass(frozen=True)
class Profile:
    """Gradient norms in execution order."""

    layers: tuple[Layer, ...]
    """Weights of layers, then outputs of blocks (their names begin with ``@``)."""
    seeds: int
    width_std: float
    """Spread between seeds that the widths predict, in decades (see `predicted_std`)."""
    version: int = VERSION

    @property
    def spread(self) -> float:
        """Root mean square over the layers of the spread between seeds, in decades."""
        return math.sqrt(statistics.fmean(layer.std**2 for layer in self.layers or (NO_LAYER,)))

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; numbers are rounded to 1e-4 decades."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)


def load(path: Path) -> Profile:
    """Read a profile.

    Raises:
        TraceError: it is no profile, or of a newer version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] > VERSION:
            raise TraceError(
                f"{path}: written by a newer gradscope; upgrade, or update the profile"
            )
        return Profile(tuple(Layer(**layer) for layer in raw.pop("layers")), **raw)
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(
            f"{path}: no gradient profile ({type(error).__name__}); delete it and run the test"
        ) from error


def measure(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    targets: Any = None,
    *,
    seeds: int = 3,
    loss: Callable[..., Any] | None = None,
) -> Profile:
    """Measure the profile of a network.

    Args:
        model: a factory, called once per seed, or one model, which allows a single seed.
        inputs: as for `gradscope.probe`; a function is called once per seed.
        targets: as for `gradscope.probe`; a function is called once per seed.
        seeds: how many initialisations to average over.
        loss: as for `gradscope.probe`.

    Returns:
        The profile; torch's generators come back as they were.

    Raises:
        ConfigError: `seeds` is below one.
        ModelError: the model does not run on the inputs.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: a gradient profile needs at least one")
    count = 1 if isinstance(model, nn.Module) else seeds
    traces = []
    for seed in range(count):
        with seeded(seed):
            built = model if isinstance(model, nn.Module) else model()
            given = inputs() if callable(inputs) else inputs
            wanted = targets() if callable(targets) else targets
            traces.append(probe(built, given, wanted, loss=loss, seed=seed, predict=False))
    norms = [_norms(trace) for trace in traces]
    names = dict.fromkeys(name for found in norms for name in found)
    layers = (_layer(name, [found.get(name) for found in norms]) for name in names)
    return Profile(tuple(layers), count, predicted_std(traces[0]))


def predicted_std(trace: Trace) -> float:
    """Spread of log10 gradient norms between initialisations that the widths predict.

    ln of the squared norm varies by b = 5 * sum(1 / n) over the layers (Hanin & Rolnick,
    1801.03744), n being the fan-in.

    Args:
        trace: with the gradients of the weights.

    Returns:
        sqrt(b) / (2 ln 10), in decades.
    """
    fan_ins = [
        math.prod(tensor.shape[1:])
        for tensor in trace.tensors
        if tensor.kind == "weight" and len(tensor.shape) > 1 and tensor.order >= 0
    ]
    return math.sqrt(5 * sum(1 / n for n in fan_ins if n)) / (2 * math.log(10))


def compare(stored: Profile, now: Profile) -> str:
    """Tell how two profiles differ beyond what chance allows.

    Two means differ when they are further apart than `tolerance` allows.

    Args:
        stored: as it was.
        now: as it is.

    Returns:
        A table of the layers that differ, empty when none does.
    """
    before = {layer.name: layer for layer in stored.layers}
    after = {layer.name: layer for layer in now.layers}
    rows = []
    for name in dict.fromkeys((*before, *after)):
        row = _difference(before.get(name), after.get(name), stored, now)
        if row:
            rows.append((name, *row))
    if not rows:
        return ""
    header = ("layer", "stored", "now", "change", "tolerance")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    total = len({*before, *after})
    title = f"log10 gradient norms changed in {len(rows)} of {total} layers"
    return "\n".join([title, *lines])


def _difference(
    before: Layer | None, after: Layer | None, stored: Profile, now: Profile
) -> tuple[str, str, str, str] | None:
    """Cells of one row, or None where nothing changed."""
    if before is None:
        return "-", _shown(after), "new layer", ""
    if after is None:
        return _shown(before), "-", "layer is gone", ""
    if before.log10_norm is None or after.log10_norm is None:
        if before.log10_norm == after.log10_norm:
            return None
        return _shown(before), _shown(after), "zero", ""
    change = after.log10_norm - before.log10_norm
    allowed = tolerance(before, after, stored, now)
    if abs(change) <= allowed:
        return None
    return _shown(before), _shown(after), f"{change:+.2f}", f"{allowed:.2f}"


def tolerance(before: Layer, after: Layer, stored: Profile, now: Profile) -> float:
    """By how many decades two means of one layer may differ by chance.

    The spread between seeds is the one that the widths predict, or the one that was seen in this
    layer or on average over all layers where that is more. Means over n and m seeds differ by
    z * spread * sqrt(1/n + 1/m) with a probability of `FALSE_ALARM` over all layers (Bonferroni).
    """
    spread = max(stored.width_std, now.width_std, stored.spread, now.spread, before.std, after.std)
    error = spread * math.sqrt(1 / stored.seeds + 1 / now.seeds)
    chance = FALSE_ALARM / (2 * max(len(now.layers), 1))
    return ROUNDING + statistics.NormalDist().inv_cdf(1 - chance) * error


def _norms(trace: Trace) -> dict[str, float]:
    """Name -> log10 norm: weights by layer, then blocks."""
    weights, flow = weight_profile(trace), gradient_flow(trace)
    found = dict(zip(weights.layers, weights.log10_grad, strict=True))
    found |= {f"@{n}": g for n, g in zip(flow.blocks, flow.log10_grad, strict=True)}
    return found


def _layer(name: str, norms: list[float | None]) -> Layer:
    known = [norm for norm in norms if norm is not None and math.isfinite(norm)]
    if len(known) < len(norms):  # a gradient that is there for some seeds only has no mean
        return Layer(name, None, 0.0)
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return Layer(name, statistics.fmean(known), std)


def _shown(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    return "zero" if layer.log10_norm is None else f"{layer.log10_norm:+.2f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
