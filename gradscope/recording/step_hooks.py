"""StepHooks: calls before and after the steps of an optimizer, and within one after its closure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any

from torch.utils.hooks import RemovableHandle

from gradscope.recording.closures import Arguments
from gradscope.recording.optimizers import attributes_of, has_hooks

Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], Arguments | None]


After = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class StepHooks:
    """Calls before and after each step of an optimizer, until they are removed."""

    def __init__(self, optimizer: Any, before: Before, after: After) -> None:
        self._optimizer = optimizer
        self._before = before
        self._after = after
        self._handles: list[RemovableHandle] = []
        self._own: MethodType | None = None
        """What stands in for a step that does not call torch's hooks."""
        self._replaced: Any = None
        """What the optimizer itself had in its place."""
        if has_hooks(optimizer):
            self._handles.append(optimizer.register_step_pre_hook(before))
            self._handles.append(optimizer.register_step_post_hook(after))
        self.look_again()

    def look_again(self) -> None:
        """Stay the last one before the step, also where others added hooks or replaced the step."""
        if self._handles:
            hooks = self._optimizer._optimizer_step_pre_hooks
            if next(reversed(hooks)) != self._handles[0].id:
                hooks.move_to_end(self._handles[0].id)
        if self.misses_steps():
            self._stand_in()

    def misses_steps(self) -> bool:
        """Whether the optimizer's step is one that was put there since, and calls no hook."""
        own = None if self._own is None else self._own.__func__
        step = getattr(self._optimizer.step, "__func__", self._optimizer.step)
        while step is not None:
            if step is own or getattr(step, "hooked", False):  # as torch marks its steps
                return False
            step = getattr(step, "__wrapped__", None)  # a scheduler's, which goes on to it
        return True

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._own is not None and attributes_of(self._optimizer).get("step") is self._own:
            if self._replaced is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._replaced
        self._own = None  # who took hold of it finds that it does nothing by itself any more

    def _stand_in(self) -> None:
        optimizer, before = self._optimizer, self._optimizer.step
        mine = getattr(before, "__self__", None) is optimizer
        plain = before.__func__ if mine else lambda _, *args, **kwargs: before(*args, **kwargs)

        @functools.wraps(getattr(before, "__func__", before))
        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self._own is None or this is not optimizer:  # a copy has it too
                return plain(this, *args, **kwargs)
            arguments: Arguments = ((this, *args), kwargs)
            arguments = self._before(this, *arguments) or arguments
            result = plain(*arguments[0], **arguments[1])
            self._after(this, *arguments)
            return result

        step.__name__ = "step"  # by which a bound method is pickled
        with suppress(AttributeError):  # an object with slots: its steps are not seen
            replaced, own = attributes_of(optimizer).get("step"), MethodType(step, optimizer)
            optimizer.step = own
            self._replaced, self._own = replaced, own
