"""Listener: a function of the user, called from within the user's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscope.errors import RecorderError, named
from gradscope.recording.guard import say


class Listener:
    """Somebody's function; one that raises is warned about and called no more."""

    def __init__(self, argument: str, function: Callable[..., Any], such_as: str) -> None:
        if not callable(function):
            raise RecorderError(
                f"{argument} must be a function, got {type(function).__name__}; "
                f"give one such as {such_as}"
            )
        self._argument = argument
        self._function: Callable[..., Any] | None = function

    def __call__(self, *args: Any) -> None:
        """Call it, unless it raised before."""
        if self._function is None:
            return
        try:
            self._function(*args)
        except Exception as fault:  # noqa: BLE001 - the training goes on without it
            self._function = None
            told = named(fault, 200)
            say(f"{self._argument} raised and is called no more: {told}")
