"""The compiled part, where there is one, and what it is asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeWarning, named

CALLS = 3
"""How the kernels are called: one more with every change of it, in native/kernels.h too."""

try:
    if os.environ.get("GRADSCOPE_KERNELS") != "0":
        from gradscope.recording import _kernels

        _kernels.configure(Tensor, nn.Parameter, Tensor.__dlpack_c_exchange_api__, CALLS)
        compiled = _kernels
    else:
        compiled = None  # type: ignore[assignment]  # mypy knows only the module
except ModuleNotFoundError:  # installed without a C compiler
    compiled = None  # type: ignore[assignment]  # mypy knows only the module
except Exception as error:  # noqa: BLE001 - whatever is wrong with them, torch's operations serve
    compiled = None  # type: ignore[assignment]  # mypy knows only the module
    warnings.warn(
        f"gradscope: the compiled kernels cannot be used ({named(error)}); "
        "recording on a CPU is several times slower. Install "
        "gradscope again, or set GRADSCOPE_KERNELS=0 to go on without them",
        GradscopeWarning,
        stacklevel=2,
    )

NORM, ALL, UNCLIPPED = 2, 4, 5
"""How many of the first raw statistics are taken: the norm and the share of NaN and Inf, those of
elements too, and of the gradient of a parameter the norm before clipping too."""

READ = (torch.float32, torch.float64, torch.bfloat16)
"""The dtypes that the kernels read; others are converted."""

Reader = Callable[[Tensor], None]
"""Takes the statistics of one tensor into the cells that it was made for."""
