"""Measured: what was measured of a cell so far, and the numbers that its function logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscope.errors import ModelError
from gradscope.study.results import Epoch, History

_MOST_PENDING = 64
"""Logged tensors that wait on their device until they are read, all in one copy."""


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
    _pending: list[tuple[str, int, Tensor]] = field(default_factory=list)

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
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                if value.numel() != 1:
                    raise _no_number(step, name, value)
                self._pending.append((name, step, value.detach().reshape(()).clone()))
            else:
                self._note(name, step, _number(step, name, value))
        if len(self._pending) >= _MOST_PENDING:
            self.read()

    def read(self) -> None:
        """Fetch what still waits on a device."""
        if self._pending:
            pending, self._pending = self._pending, []
            values = torch.stack([value.double() for _, _, value in pending]).tolist()
            for (name, step, _), value in zip(pending, values, strict=True):
                self._note(name, step, value)

    def fault(self, decisive: Iterable[str]) -> str:
        """The first of the decisive metrics whose last value is no number, on one line."""
        for name in decisive:
            values = self.logged.get(name)
            if values and not math.isfinite(values[-1][1]):
                step, value = next(v for v in values if not math.isfinite(v[1]))
                return f"{name} became {value} at step {step}"
        return ""

    def _note(self, name: str, step: int, value: float) -> None:
        self.logged.setdefault(name, []).append((step, value))


def _number(step: int, name: str, value: Any) -> float:
    if isinstance(value, str | bytes) or (isinstance(value, Tensor) and value.is_meta):
        raise _no_number(step, name, value)
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_number(step, name, value) from error


def _no_number(step: int, name: str, value: Any) -> ModelError:
    what = f"a {type(value).__name__}"
    if isinstance(value, str):
        what = f"text ({value[:40]!r})"
    elif isinstance(value, Tensor):
        what = f"a tensor of shape {tuple(value.shape)} on {value.device}"
    return ModelError(
        f"run.log({step}, {name}=...): {what}; log one number, as loss.item() or loss.mean()"
    )
