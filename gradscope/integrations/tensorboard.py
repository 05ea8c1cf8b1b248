"""TensorBoard: a writer as a sink of `gradscope.watch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Writer(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter`, tensorboardX and Lightning's logger have."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""


def tensorboard(writer: Writer) -> Callable[[dict[str, float], int], None]:
    """A function for ``watch(log=...)`` that writes each number as a scalar.

    Args:
        writer: a ``SummaryWriter``; it stays the caller's to close.

    Example:
        >>> gradscope.watch(model, optimizer, log=tensorboard(writer))  # doctest: +SKIP
    """

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log
