"""What follows a closure within a step of an optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional ones, the optimizer first, and named ones, as torch hands them to its step hooks."""


def before_it_is_used(arguments: Arguments, then: Callable[[], None]) -> Arguments | None:
    """Arguments of a step whose closure is followed by a call, each time that it is evaluated.

    Optimizers change gradients in place, so that only between the closure and what follows within
    the step there is the gradient that they consume.

    Args:
        arguments: of the step.
        then: to be called after the closure.

    Returns:
        The arguments with another closure; None where there is none.
    """

    def followed(closure: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(closure)
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            loss = closure(*args, **kwargs)
            then()
            return loss

        return evaluate

    given, named = arguments
    if callable(named.get("closure")):
        return given, {**named, "closure": followed(named["closure"])}
    for i, each in enumerate(given[1:], 1):
        if callable(each) and not isinstance(each, nn.Module):
            return (*given[:i], followed(each), *given[i + 1 :]), named
    return None
