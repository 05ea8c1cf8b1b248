"""Measured: what was measured of a cell so far, and the numbers that its function logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradscope.errors import ModelError
from gradscope.recording.scalars import Scalars, fault
from gradscope.study.results import Epoch, History


@dataclass
class Measured:
    """What was measured of a cell so far; the built-in loop writes here, others by `Run.log`."""

    step_loss: list[float] = field(default_factory=list)
    """Of each step from 0."""
    epochs: list[Epoch] = field(default_factory=list)
    logged: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    n_parameters: int = 0
    images_per_s: float = 0.0
    diverged: str = ""
    """Why it counts as diverged, on one line."""

    def __post_init__(self) -> None:
        self._scalars = Scalars(self._note)

    def history(self) -> History:
        """As it is stored; a loss that was logged at every step from 0 is that of each step."""
        losses = self.step_loss
        told = self.logged.get("loss", [])
        if not losses and [step for step, _ in told] == list(range(len(told))):
            losses = [value for _, value in told]
        logged = {name: tuple(values) for name, values in self.logged.items()}
        return History(tuple(losses), tuple(self.epochs), logged)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note numbers of a step; those on a device are read later, many at a time.

        Raises:
            ModelError: a value is no number.
        """
        for name, value in metrics.items():
            if wrong := fault(value):
                raise ModelError(
                    f"run.log({step}, {name}=...): {wrong}; log one number, as loss.item() or "
                    "loss.mean()"
                )
            self._scalars.take((name, step), value)

    def read(self) -> None:
        """Fetch what still waits on a device."""
        self._scalars.settle()

    def fault(self, decisive: Iterable[str]) -> str:
        """The first of the decisive metrics whose last value is no number, on one line."""
        for name in decisive:
            values = self.logged.get(name)
            if values and not math.isfinite(values[-1][1]):
                step, value = next(v for v in values if not math.isfinite(v[1]))
                return f"{name} became {value} at step {step}"
        return ""

    def _note(self, label: tuple[str, int], value: float) -> None:
        name, step = label
        self.logged.setdefault(name, []).append((step, value))
