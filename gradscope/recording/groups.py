"""Groups: what the optimizers hold, and the learning rate of each group over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.trace.structure import ParameterGroup
from gradscope.trace.table import RecordedStep

MAX_SERIES = 16
"""Groups whose learning rate is followed; who has a group for each parameter has more."""


class Groups:
    """The parameter groups of some optimizers."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._model = model
        self._optimizers = optimizers
        self._settings = [_numbers(group) for _, group in self._all()]
        """As they were when the recording began."""
        self._rates: dict[int, dict[int, float]] = {}
        """Step -> learning rate of each group."""

    def note(self, step: int, optimizer: Optimizer) -> None:
        """Note the learning rates that an optimizer is about to step with."""
        rates = self._rates.setdefault(step, {})
        for i, (owner, group) in enumerate(self._all()[:MAX_SERIES]):
            rate = _number(group.get("lr")) if owner is optimizer else None
            if rate is not None:
                rates[i] = rate

    def describe(self) -> tuple[ParameterGroup, ...]:
        """The groups as they are now, with the settings that they had at first."""
        names = {id(p): name for name, p in self._model.named_parameters()}
        described = []
        for i, (optimizer, group) in enumerate(self._all()):
            held = [names.get(id(p), "") for p in group["params"]]
            mine = tuple(name for name in held if name)
            settings = self._settings[i] if i < len(self._settings) else _numbers(group)
            kind = type(optimizer).__name__
            described.append(ParameterGroup(kind, mine, len(held) - len(mine), settings))
        return tuple(described)

    def held(self) -> set[int]:
        """Identities of all parameters in the groups."""
        return {id(p) for _, group in self._all() for p in group["params"]}

    def logged(self, steps: Sequence[RecordedStep]) -> dict[str, tuple[tuple[int, float], ...]]:
        """``lr/0`` and so on: the rate of each group at some steps; others are forgotten."""
        kept = {step.step for step in steps}
        self._rates = {step: rates for step, rates in self._rates.items() if step in kept}
        series: dict[str, list[tuple[int, float]]] = {}
        for step, rates in sorted(self._rates.items()):
            for i, rate in rates.items():
                series.setdefault(f"lr/{i}", []).append((step, rate))
        return {name: tuple(series[name]) for name in sorted(series)}

    def _all(self) -> list[tuple[Optimizer, dict[str, Any]]]:
        return [(each, group) for each in self._optimizers for group in each.param_groups]


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    """The settings of a group that are numbers; of pairs such as betas each on its own."""
    settings = {}
    for key, value in group.items():
        if key == "params":
            continue
        if isinstance(value, tuple):
            parts = {f"{key}[{i}]": part for i, part in enumerate(value)}
        else:
            parts = {key: value}
        for name, part in parts.items():
            number = _number(part)
            if number is not None:
                settings[name] = number
    return settings


def _number(value: object) -> float | None:
    """A number that can be read without waiting for a device."""
    if isinstance(value, Tensor):
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
