"""Which calls and tensors of a forward pass are recorded: limits, and what carries a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from gradscope.nested import tensors_in
from gradscope.recording import reductions

MAX_CALLS = 256
"""Calls of one module within one step that are recorded; a longer loop is cut off there."""

MAX_OUTPUTS = 64
"""Tensors of one call that are recorded; a list that grows from step to step is cut off there."""

_TRACERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


def floating_in(output: Any) -> Sequence[Tensor]:
    """The tensors in what a module returned that can carry a gradient, whatever the nesting."""
    return [
        t
        for t in tensors_in(output)
        if (t.is_floating_point() or t.is_complex()) and reductions.is_readable(t)
    ]


def only_traced() -> bool:
    """Whether what runs is being written down, by torch.jit, torch.fx or torch.export."""
    if torch._C._get_tracing_state() is not None or is_fx_symbolic_tracing():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
