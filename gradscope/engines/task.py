"""What engines run and tell: tasks, work, events; and the engine that is this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

from gradscope.errors import MachineError, named


class Task(Protocol):
    """What an engine runs: anything with an id that can be sent to another process."""

    @property
    def id(self) -> str:
        """Tells it from the others."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task."""

    task: str
    """Its id."""
    kind: Literal["started", "progress", "finished", "lost", "crowded", "halted"]
    """``lost``: the work did not return; the process died, or raised. ``crowded``: so, for want of
    GPU memory, which it may have when it is alone; engines that share GPUs try that. ``halted``:
    the machine cannot, so that no other task will fare better."""
    value: Any = None
    """What the work told, what it returned, or why it was lost, on one line."""
    traceback: str = ""


Work = Callable[[Any, Callable[[Any], None]], Any]
"""Called with a task and a function to tell progress with; what it returns should be small."""

Observe = Callable[[Event], None]


class Engine(Protocol):
    """Runs tasks in their order, several at a time where it can."""

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; each ends with one event, ``finished`` or ``lost``, and a loss stops no other.

        Args:
            tasks: what to do.
            work: does one of them; must be picklable for engines with processes of their own.
            observe: told, in the caller's thread, what happens.
        """
        ...


class InProcess:
    """One task after the other, in this process."""

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`."""
        for task in tasks:
            name = task.id
            observe(Event(name, "started"))
            observe(final(attempt(task, work, partial(tell, observe, name))))


def final(event: Event) -> Event:
    """The event of a task that is not tried again: one that was crowded is lost."""
    return replace(event, kind="lost") if event.kind == "crowded" else event


def attempt(task: Task, work: Work, tell: Callable[[Any], None]) -> Event:
    """Do the work on a task; what it raises becomes the loss of that task alone."""
    try:
        return Event(task.id, "finished", work(task, tell))
    except MachineError as error:
        return Event(task.id, "halted", str(error))
    except Exception as error:  # noqa: BLE001 - a task must not take the others with it
        reason = named(error)
        kind: Literal["crowded", "lost"] = "crowded" if out_of_memory(error) else "lost"
        return Event(task.id, kind, reason, traceback.format_exc())


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no memory left; asked without loading torch."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def tell(observe: Observe, task: str, value: Any) -> None:
    """Pass progress of a task on."""
    observe(Event(task, "progress", value))


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
