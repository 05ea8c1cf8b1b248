"""Initialisation by name: which scheme, from which distribution, on which types of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import ModelError, nearest
from gradscope.models.config import InitConfig

_SCHEMES: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("kaiming", "uniform"): nn.init.kaiming_uniform_,
    ("kaiming", "normal"): nn.init.kaiming_normal_,
    ("xavier", "uniform"): nn.init.xavier_uniform_,
    ("xavier", "normal"): nn.init.xavier_normal_,
    ("orthogonal", "uniform"): nn.init.orthogonal_,  # has one distribution, the uniform one
}


def initialise(model: nn.Module, init: InitConfig) -> None:
    """Draw the weights of the chosen layers anew, in place, from torch's global generator.

    Args:
        model: any module whose parameters are materialised.
        init: what to draw.

    Raises:
        ModelError: the model has no such layer, or such a layer has no weight of two or more
            dimensions, without which fan_in is undefined.
    """
    if init.scheme == "default":
        return
    draw = _SCHEMES[init.scheme, init.distribution]
    missing = set(init.layers)
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__} & set(init.layers)
        if not kinds:
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            raise ModelError(
                f"init {init.scheme}: {type(module).__name__} {name} has no weight matrix; "
                "leave it out of init.layers"
            )
        draw(weight)
        missing -= kinds
    if missing:
        have = {type(m).__name__ for m in model.modules() if isinstance(_weight(m), Tensor)}
        wrong = min(missing)
        raise ModelError(
            f"init {init.scheme}: the model has no layer of type '{wrong}'; set init.layers; "
            f"{nearest(wrong, have)}"
        )


def _weight(module: nn.Module) -> Any:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() > 1 else None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a while; the caller's streams go on undisturbed after it.

    Args:
        seed: for the CPU, and for CUDA where it is in use.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # torch lacks it
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
