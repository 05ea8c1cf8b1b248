"""What runs within the user's calls and is seen neither by `torch.compile` nor by modes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

try:
    from torch._C._dynamo import eval_frame
except ImportError:  # a torch without Dynamo has no compiled code
    eval_frame = None  # type: ignore[assignment]  # mypy knows only the module

_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack

compiler: Callable[[], object] = (
    eval_frame.get_eval_frame_callback if eval_frame is not None else lambda: None
)
"""What compiles the functions that are called; None outside of compiled code."""


def unseen_by_dynamo(function: Callable[..., Any], *, callees: bool) -> None:
    """Keep `torch.compile` from looking into a function that runs between compiled parts.

    Args:
        function: written in Python.
        callees: whether what it calls is left alone too; else that is compiled as ever.
    """
    if eval_frame is not None and isinstance(function, FunctionType):
        action = eval_frame._FrameAction
        recursive = action.SKIP if callees else action.DEFAULT
        strategy = eval_frame._FrameExecStrategy(action.SKIP, recursive)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)


def observed() -> bool:
    """Whether modes of a user see what is done with any tensor."""
    return bool(_function_modes() or _dispatch_modes())


def unobserved(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function so that neither the modes nor the tensor classes of a user see it."""
    functions = _function_modes()
    if not functions and not _dispatch_modes():
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args)
    with torch._C.DisableTorchFunction() if functions else nullcontext(), _disable_current_modes():
        return function(*args)
