"""Rules for softmax and for attention in one kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.flux import Operation
from gradscope.theory.operators.linear import product_factor
from gradscope.theory.operators.nodes import Rule, dims, saved


def _softmax(node: Any) -> Operation:
    result = saved(node, "result").detach().float()
    return Operation((_softmax_factor(result, dims(node, result.dim())[0]),), "softmax")


def _softmax_factor(share: Tensor, dim: int) -> float:
    square = share.square()
    total = square.sum(dim, keepdim=True)
    return float((square * (1 - 2 * share + total)).mean())


def _log_softmax(node: Any) -> Operation:
    result = saved(node, "result").detach().float()
    dim = dims(node, result.dim())[0]
    concentration = float(result.exp().square().sum(dim).mean())
    return Operation((max(1.0 - 2.0 / result.shape[dim] + concentration, 0.0),), "softmax")


def _attention(node: Any) -> Operation:
    """softmax(q k^T scale) v in one kernel: the rules of its parts, on the first sample.

    The Jacobian of softmax removes what is the same for all keys, so v and k count from their mean
    over positions.
    """
    query, key, value = (saved(node, n)[:1].detach().float() for n in ("query", "key", "value"))
    scale = saved(node, "scale") or query.shape[-1] ** -0.5
    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    mask = saved(node, "attn_mask")
    mask = saved(node, "attn_bias") if mask is None else mask
    if mask is not None and mask.dim() <= 4:
        mask = mask[:1] if mask.dim() == 4 else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if saved(node, "is_causal"):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    share = scores.softmax(-1)
    centred_key, centred_value = (t - t.mean(-2, keepdim=True) for t in (key, value))
    to_scores = product_factor(centred_value.transpose(-1, -2), -2) * _softmax_factor(share, -1)
    to_scores *= scale**2
    return Operation(
        (
            to_scores * product_factor(centred_key, -2),
            to_scores * product_factor(query, -2),
            float(share.square().sum(-1).mean()),
        ),
        "attention",
    )


_KERNELS = (
    "ScaledDotProductCudnnAttention",
    "ScaledDotProductEfficientAttention",
    "ScaledDotProductFlashAttention",
    "ScaledDotProductFlashAttentionForCpu",
    "ScaledDotProductFusedAttentionOverrideable",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_KERNELS, _attention),
    **dict.fromkeys(("SafeSoftmax", "Softmax"), _softmax),
    "LogSoftmax": _log_softmax,
}
