"""Rules for normalisations: the scale that they divide by, read from the forward pass."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradscope.theory.flux import Operation
from gradscope.theory.operators.nodes import Rule, mean_square, per_element, saved


def _batch_norm(node: Any) -> Operation:
    given, weight = saved(node, "input"), saved(node, "weight")
    if saved(node, "training"):
        inverse = saved(node, "result2").float()
        kept = _projection(given.numel() // max(given.shape[1], 1), 2)
    else:
        eps = saved(node, "eps")
        eps = saved(node, "epsilon") if eps is None else eps
        inverse = (saved(node, "running_var").float() + eps).rsqrt()
        kept = 1.0
    gains: Tensor = (inverse if weight is None else inverse * weight.detach()).square() * kept

    def mix(channels: Tensor) -> Tensor:
        return channels * gains.float().cpu()

    return Operation(
        (float(gains.mean()),),
        "norm",
        keeps_positions=True,
        mixes=(mix,),
        mixes_evenly=False,
        channels=given.shape[1],
    )


def _layer_norm(node: Any) -> Operation:
    group = math.prod(saved(node, "normalized_shape") or (0,))
    centred = 2 if saved(node, "result2") is not None else 1
    inverse = saved(node, f"result{centred}")
    factor = mean_square(inverse) * _projection(group, centred)
    weight = saved(node, "weight")
    return Operation((factor * (1.0 if weight is None else mean_square(weight)),), "norm")


def _group_norm(node: Any) -> Operation:
    group = saved(node, "C") * saved(node, "HxW") // saved(node, "group")
    weight = saved(node, "weight")
    factor = mean_square(saved(node, "result2")) * _projection(group, 2)
    factor *= 1.0 if weight is None else mean_square(weight)
    return per_element((factor,), "norm")


def _projection(group: int, removed: int) -> float:
    """Share of a white gradient that is left once mean and scale are projected out of a group."""
    return max(1.0 - removed / group, 0.0) if group else 1.0


RULES: dict[str, Rule] = {
    **dict.fromkeys(("CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"), _batch_norm),
    **dict.fromkeys(("FusedRmsNorm", "NativeLayerNorm"), _layer_norm),
    "NativeGroupNorm": _group_norm,
}
