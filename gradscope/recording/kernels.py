"""The compiled part, where there is one, and what it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.recording.buffer import RAW

try:
    from gradscope.recording import _kernels

    _kernels.configure(Tensor, nn.Parameter, Tensor.__dlpack_c_exchange_api__, len(RAW))
    compiled = _kernels
except ImportError:  # without a C compiler, or for a torch with another DLPack
    compiled = None  # type: ignore[assignment]  # mypy knows only the module

NORM, ALL, UNCLIPPED = 2, 4, 5
"""How many of the first raw statistics are taken: the norm and the share of NaN and Inf, those of
elements too, and of the gradient of a parameter the norm before clipping too."""

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
"""The dtypes that the kernels read; others are converted."""

Reader = Callable[[Tensor], None]
"""Takes the statistics of one tensor into the cells that it was made for."""


class ForwardHook(Protocol):
    """A forward hook for modules."""

    active: bool
    """Whether calls are to be taken that are as in an earlier step."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any, /) -> None:
        """Take what one call of one module gave."""


def forward_hook(
    modules: Mapping[int, Any],
    usual: Sequence[tuple[Callable[[], object], object]],
    key: object,
    hook: ForwardHook,
) -> ForwardHook:
    """The hook in compiled form, for what it can take itself; without kernels as it is.

    Args:
        modules: id of a module -> what is known of it.
        usual: functions, and what they return within a plain forward pass.
        key: among the hooks of a tensor, tells that it was taken.
        hook: takes the rest.
    """
    if compiled is None:
        return hook  # type: ignore[unreachable]  # mypy knows only the module
    return compiled.ForwardHook(modules, usual, OrderedDict, key, hook)
