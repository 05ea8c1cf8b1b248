"""Single numbers that somebody logs: what is one, and those of a device, which are read later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.recording.copies import Copy

BATCH = 32
"""Numbers that wait on a device before they are copied out together."""


def fault(value: Any) -> str:
    """What keeps a value from being read as one real number; empty where nothing does."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex() or value.is_meta or hasattr(value, "to_local"):
            what = f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
            return f"it is {what} on {value.device}"
        return ""
    if isinstance(value, str | bytes | complex) or not hasattr(value, "__float__"):
        return f"it is of type {type(value).__name__}"
    try:
        float(value)
    except Exception as error:  # noqa: BLE001 - somebody's object; the loop goes on
        return f"as a number it raises {type(error).__name__}"
    return ""


class Scalars:
    """Takes numbers under labels and hands them on; the host waits for no device until the end."""

    def __init__(self, put: Callable[[Any, float], None]) -> None:
        self._put = put
        """Called with a label and its number, of each device in the order they came."""
        self._waiting: dict[torch.device, list[tuple[Any, Tensor]]] = {}
        self._in_flight: list[tuple[list[Any], Copy]] = []

    def take(self, label: Any, value: Any) -> None:
        """Hand on what is on the host, keep the rest; `fault` found nothing in the value."""
        if not isinstance(value, Tensor) or value.device.type == "cpu":
            self._put(label, float(value.detach() if isinstance(value, Tensor) else value))
            return
        # As exact as a device can: one of Apple's has no float64.
        exact = torch.float32 if value.device.type == "mps" else torch.float64
        waiting = self._waiting.setdefault(value.device, [])
        waiting.append((label, value.detach().reshape(()).to(exact, copy=True)))
        if len(waiting) == BATCH:
            self._send(waiting)

    def settle(self) -> None:
        """Hand on all that was taken; waits for the devices."""
        for waiting in self._waiting.values():
            if waiting:
                self._send(waiting)
        self._arrive()

    def _send(self, waiting: list[tuple[Any, Tensor]]) -> None:
        """Start copying; what was on its way before has long arrived."""
        self._arrive()
        labels = [label for label, _ in waiting]
        self._in_flight.append((labels, Copy(torch.stack([there for _, there in waiting]))))
        waiting.clear()

    def _arrive(self) -> None:
        for labels, copy in self._in_flight:
            for label, value in zip(labels, copy.read().tolist(), strict=True):
                self._put(label, value)
        self._in_flight.clear()
