"""Logged: what `Scope.log` was told, by name and step; numbers of a device are read later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradscope.recording.scalars import Scalars, fault
from gradscope.trace.table import RecordedStep

LIMIT = 4096
"""Values of a name beyond which every second one is dropped, but for those of recorded steps."""

RATES = "lr/"
"""What the names of the learning rates begin with; they are the recorder's own."""


@dataclass(slots=True)
class _Series:
    """The values of one name: every so many of those told, and those of recorded steps."""

    late: bool
    """Told after the step that it is about."""
    points: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Step -> which value of its name it was, and the value."""
    told: int = 0
    stride: int = 1
    limit: int = LIMIT


class Logged:
    """Bounded memory: what was told at recorded steps, and an even choice of the rest.

    A name first told before the first step has ended is about the step that runs, one first told
    later about the step that ended last: loops log on either side of the optimizer's step.
    """

    def __init__(self, keeps: Callable[[int], bool]) -> None:
        self._keeps = keeps
        """Whether a step is one that stays recorded."""
        self._series: dict[str, _Series] = {}
        self._scalars = Scalars(self._put)
        self._refused: set[str] = set()

    def note(self, step: int, values: Mapping[str, Any]) -> list[str]:
        """Take some values while a step runs, without waiting for a device.

        Returns:
            One line for each name whose value is no number; a name is complained of only once.
        """
        complaints = []
        for name, value in values.items():
            wrong = self._note(name, step, value)
            if wrong and name not in self._refused:
                self._refused.add(name)
                complaints.append(f"log({name}=...) was left out: {wrong}")
        return complaints

    def _note(self, name: str, step: int, value: Any) -> str:
        if name.startswith(RATES):
            return f"names that begin with {RATES} are the recorder's own; choose another"
        wrong = fault(value)
        if wrong:
            return f"{wrong}; give a number or a tensor of one"
        series = self._series.setdefault(name, _Series(late=step > 0))
        number, series.told = series.told, series.told + 1
        about = step - series.late
        self._scalars.take((name, about, number), value)
        return ""

    def _put(self, label: tuple[str, int, int], value: float) -> None:
        name, step, number = label
        series = self._series[name]
        if number % series.stride == 0 or self._keeps(step):
            series.points[step] = (number, value)
        if len(series.points) > series.limit:
            series.stride *= 2
            series.points = {
                step: point
                for step, point in series.points.items()
                if point[0] % series.stride == 0 or self._keeps(step)
            }
            series.limit = max(LIMIT, 2 * len(series.points))

    def series(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """Name -> (step, value) in order; of several values at one step the last."""
        self._scalars.settle()
        return {
            name: tuple((step, value) for step, (_, value) in sorted(series.points.items()))
            for name, series in self._series.items()
        }


def with_losses(
    steps: tuple[RecordedStep, ...], logged: Mapping[str, tuple[tuple[int, float], ...]]
) -> tuple[RecordedStep, ...]:
    """The steps with the loss that was logged where no backward pass told it."""
    told = dict(logged.get("loss", ()))
    return tuple(
        dataclasses.replace(each, loss=told[each.step])
        if each.loss is None and each.step in told
        else each
        for each in steps
    )
