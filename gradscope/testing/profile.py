"""Profile: what one pass does in each layer of a network, seed by seed, and its file."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscope.errors import TraceError

VERSION = 2

MEASURES = {
    "gradient": "log10 norm of the gradient of its parameters",
    "weight": "log10 norm of its parameters",
    "update": "log10 of gradient norm / weight norm: one step of SGD at a learning rate of 1",
    "output": "log10 rms of its output",
    "flow": "log10 norm of the gradient of its output",
    "draw": "log10 of L1 norm / (sqrt(n) L2 norm) of its largest parameter, which no scale changes",
    "dead": "share of its units that are zero for every example",
}
"""What is kept of each layer, where it has it."""

DRAWN = ("weight", "draw")
"""Those that come before the first computation."""

OUTSIDE = ("(inputs)", "(targets)")
"""Rows for what goes into the network and into the loss; their `weight` and `draw` are of that."""

Numbers = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Layer:
    """One module, or one further call of it; or what goes into the network."""

    type: str
    """Class name."""
    parameters: str
    """Names and shapes of its own parameters: ``weight 64x3x7x7, bias 64``; of inputs their
    shapes and types."""
    numbers: Numbers
    """Measure -> one number for each seed; -inf where it is zero, NaN where it is not finite."""


@dataclass(frozen=True)
class Profile:
    """What a network does at initialisation."""

    layers: Mapping[str, Layer]
    """Name -> layer: inputs and targets, then modules in execution order."""
    seeds: int
    width_std: float
    """Spread of gradients between seeds that the widths predict, in decades."""
    frozen: tuple[str, ...] = ()
    """Parameters with ``requires_grad=False``."""
    without_gradient: tuple[str, ...] = ()
    """Other parameters that got no gradient."""
    shared: Mapping[str, str] | None = None
    """Further name of a shared parameter -> its first one."""
    torch: str = ""
    """Version of torch."""

    def save(self, path: Path) -> None:
        """Write it as JSON, one line a layer, whole or not at all."""
        head = {
            "version": VERSION,
            "torch": self.torch,
            "seeds": self.seeds,
            "width_std": round(self.width_std, 4),
            "frozen": list(self.frozen),
            "without_gradient": list(self.without_gradient),
            "shared": dict(self.shared or {}),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = [f"  {json.dumps(n)}: {json.dumps(_plain(la))}" for n, la in self.layers.items()]
        lines.append(' "layers": {\n' + ",\n".join(rows) + "\n }")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        temporary.replace(path)


def load(path: Path) -> Profile:
    """Read a profile.

    Raises:
        TraceError: it is no profile, or of another version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.pop("version")
        if version > VERSION:
            raise TraceError(
                f"{path}: written by a newer gradscope; upgrade, or accept the profile anew with "
                "pytest --gradscope-update"
            )
        if version < VERSION:
            raise TraceError(
                f"{path}: old format, with means over the seeds only, which cannot be compared "
                "seed by seed; accept the profile anew with pytest --gradscope-update"
            )
        layers = {name: _layer(**layer) for name, layer in raw.pop("layers").items()}
        frozen, without = tuple(raw.pop("frozen")), tuple(raw.pop("without_gradient"))
        return Profile(layers=layers, frozen=frozen, without_gradient=without, **raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(
            f"{path}: no gradient profile ({type(error).__name__}); write it anew with "
            "pytest --gradscope-update"
        ) from error


def _plain(layer: Layer) -> dict[str, Any]:
    numbers = {
        measure: [_written(value, 7 if measure in DRAWN else 5) for value in values]
        for measure, values in layer.numbers.items()
    }
    return {"type": layer.type, "parameters": layer.parameters, **numbers}


def _layer(type: str, parameters: str, **numbers: list[float | str]) -> Layer:  # noqa: A002 - the key in the file
    return Layer(type, parameters, {m: tuple(map(float, numbers[m])) for m in numbers})


def _written(value: float, digits: int) -> float | str:
    """JSON has no infinity: ``"-inf"`` and ``"nan"`` are strings, which float() reads."""
    return round(value, digits) if math.isfinite(value) else str(value)
