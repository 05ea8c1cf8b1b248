"""Mean-field rules per operation: the factor of one autograd node on the squared gradient norm.

Each rule assumes what mean-field theory assumes: the gradient that arrives at an operation is
independent of its weights and of its forward values, and its elements are independent of each
other. Weights' variance, fan and forward statistics (share of active units, variance that a
normalisation divides by) are read from the node; no backward pass is run.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradscope.flux import Mix, Operation

Rule = Callable[[Any], Operation]


def read_operation(node: Any) -> Operation:
    """Apply the rule that fits an autograd node.

    Args:
        node: ``grad_fn`` of a tensor, before its graph is freed.

    Returns:
        The operation; with a reason where no rule fits.
    """
    kind = _kind(node)
    rule = _RULES.get(kind)
    inputs = len(node.next_functions)
    if rule is None:
        return Operation((1.0,) * inputs, reason=f"no mean-field result for {kind}")
    operation = rule(node)
    if any(math.isnan(f) or f == math.inf for f in operation.factors):
        return Operation((1.0,) * inputs, reason=f"forward values of {kind} are not finite")
    missing = inputs - len(operation.factors)
    if missing <= 0:
        return operation
    # Biases and other constants come last: no gradient flows on from them.
    return replace(operation, factors=(*operation.factors, *(0.0,) * missing))


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def output_shape(node: Any, index: int = 0) -> tuple[int, ...]:
    """Shape of one output of a node; empty for a custom function that does not tell."""
    metadata = node._input_metadata  # noqa: SLF001 - autograd has no public name for it
    return tuple(metadata[index].shape) if index < len(metadata) else ()


def _square(value: Any) -> float:
    """Mean square of a tensor or a number; NaN where the tensor was not saved."""
    if isinstance(value, Tensor):
        if not value.numel():
            return 0.0
        half = value.element_size() < 4 or not value.is_floating_point()
        norm = torch.linalg.vector_norm(value.detach(), dtype=torch.float32 if half else None)
        return float(norm) ** 2 / value.numel()
    return math.nan if value is None else float(abs(value) ** 2)


def _saved(node: Any, name: str) -> Any:
    return getattr(node, f"_saved_{name}", None)


def _dims(node: Any, rank: int) -> list[int]:
    dims = _saved(node, "dim")
    dims = dims if isinstance(dims, tuple) else (dims,)
    signed = [d - 2**64 if d >= 2**63 else d for d in dims if d is not None]
    return [d % rank for d in signed] or list(range(rank))


def _move(node: Any) -> Operation:
    return Operation((1.0,) * len(node.next_functions), keeps_channels=_same_channels(node))


def _permute(node: Any) -> Operation:
    return Operation((1.0,) * len(node.next_functions))


def _same_channels(node: Any) -> bool:
    """Whether samples and channels, the first two dimensions, are the same before and after."""
    source, index = node.next_functions[0]
    if source is None or hasattr(source, "variable"):
        return False
    before, after = output_shape(source, index), output_shape(node)
    return len(after) > 1 and before[:2] == after[:2]


def _elementwise_move(node: Any) -> Operation:
    return _per_element((1.0,) * len(node.next_functions))


def _per_element(factors: tuple[float, ...], label: str = "") -> Operation:
    """An operation that treats every element by itself."""
    return Operation(factors, label, keeps_positions=True, keeps_channels=True)


def _add(node: Any) -> Operation:
    scale = _square(_saved(node, "alpha"))
    summed = all(n is not None and not hasattr(n, "variable") for n, _ in node.next_functions)
    label = "sum" if summed and len(node.next_functions) > 1 else ""
    return _per_element((1.0, scale), label)


def _multiply(node: Any) -> Operation:
    on, by = _carries(node)[0], _carries(node)[-1] and len(node.next_functions) > 1
    factors = (
        _square(_saved(node, "other")) if on else 0.0,
        _square(_saved(node, "self")) if by else 0.0,
    )
    return _per_element(factors, "product")


def _divide(node: Any) -> Operation:
    numerator, divisor = _saved(node, "self"), _saved(node, "other")
    own = _square(divisor.float().reciprocal() if isinstance(divisor, Tensor) else 1 / divisor)
    by = _carries(node)[-1] and len(node.next_functions) > 1 and numerator is not None
    other = _square(numerator / divisor**2) if by else 0.0
    return _per_element((own, other), "product")


def _carries(node: Any) -> tuple[bool, ...]:
    """Per input, whether anything but parameters lies before it."""
    return tuple(not _is_constant(source) for source, _ in node.next_functions)


def _is_constant(source: Any) -> bool:
    """Whether a tensor is a parameter or a rearranged one."""
    if source is None or hasattr(source, "variable"):
        return True
    return _RULES.get(_kind(source)) in (_move, _permute) and all(
        _is_constant(before) for before, _ in source.next_functions
    )


def _elementwise(node: Any) -> Operation:
    saved = _saved(node, "result")
    saved = _saved(node, "self") if saved is None else saved
    slope = node(torch.ones_like(saved))
    slope = slope[0] if isinstance(slope, tuple) else slope
    return _per_element((_square(slope),), "activation")


def _relu(node: Any) -> Operation:
    result = _saved(node, "result").detach()
    active = float(torch.count_nonzero(result)) / max(result.numel(), 1)
    finite = math.isfinite(float(result.sum(dtype=torch.float32)))
    return _per_element((active if finite else math.nan,), "activation")


def _affine(node: Any) -> Operation:
    """addmm(bias, a, b) and mm(a, b): the factor on a is |b|_F^2 / columns of b = fan_in Var w."""
    a: Tensor | None = _saved(node, "mat1")
    b: Tensor | None = _saved(node, "mat2")
    a = _saved(node, "self") if a is None else a
    on, by = _carries(node)[-2:]
    scale = _saved(node, "alpha")
    scale = 1.0 if scale is None else _square(scale)
    factors = (_product(b, -1) * scale if on else 0.0, _product(a, -2) * scale if by else 0.0)
    width = math.inf if by or b is None else float(b.shape[0])
    before = len(node.next_functions) - 2
    if by or b is None:
        return Operation(((0.0,) * before) + factors, "linear", width)
    weight = b

    def mix(features: Tensor) -> Tensor:
        return weight.detach().float().square().cpu() @ features * scale

    return Operation(
        ((0.0,) * before) + factors,
        "linear",
        width,
        mixes=(mix,) * (before + 2),
        channels=weight.shape[1],
    )


def _batched_product(node: Any) -> Operation:
    on, by = _carries(node)
    first, second = _saved(node, "self"), _saved(node, "mat2")
    return Operation(
        (_product(second, -1) if on else 0.0, _product(first, -2) if by else 0.0), "linear"
    )


def _product(other: Tensor | None, contracted: int) -> float:
    """Factor of a matrix product on one operand: |other|_F^2 / size summed over backwards."""
    if other is None:
        return math.nan
    return _square(other) * other.shape[-1] * other.shape[-2] / other.shape[contracted]


def _convolution(node: Any) -> Operation:
    weight: Tensor = _saved(node, "weight")
    transposed, groups = _saved(node, "transposed"), _saved(node, "groups")
    taps = math.prod(weight.shape[2:])
    fan_in = taps * (weight.shape[0] // groups if transposed else weight.shape[1])
    if node.next_functions[0][0] is None:
        return Operation((0.0,), "linear", fan_in)
    given = _saved(node, "input")

    def spread(positions: Tensor) -> Tensor:
        return _adjoint(positions, node, tuple(weight.shape[2:]), tuple(given.shape[2:]))

    def mix(channels: Tensor) -> Tensor:
        squares = weight.detach().float().square().flatten(2).sum(2).cpu()
        by_group = channels.view(groups, -1, 1)
        if transposed:  # weight is (in, out / groups, ...)
            return (squares.view(groups, -1, squares.shape[1]) @ by_group).flatten()
        return (squares.view(groups, -1, squares.shape[1]).mT @ by_group).flatten()

    shape = output_shape(node)
    return Operation(
        (_square(weight) * fan_in,),
        "linear",
        fan_in,
        sizes=shape[2:],
        spread=spread,
        mixes=(mix,),
        mixes_evenly=groups == 1,
        channels=shape[1],
    )


def _adjoint(
    positions: Tensor, node: Any, kernel: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """The map of squared gradients behind a convolution: its adjoint with a kernel of means."""
    stride, padding = _saved(node, "stride"), _saved(node, "padding")
    dilation = _saved(node, "dilation")
    ones = torch.ones(1, 1, *kernel) / math.prod(kernel)
    grid = zip(size, positions.shape, stride, padding, dilation, kernel, strict=True)
    if _saved(node, "transposed"):
        rest = [0] * len(kernel)
        back = False
    else:
        rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in grid]
        back = True
    spread = torch.convolution(
        positions[None, None], ones, None, stride, padding, dilation, back, rest, 1
    )
    return spread[0, 0]


def _batch_norm(node: Any) -> Operation:
    given, weight = _saved(node, "input"), _saved(node, "weight")
    if _saved(node, "training"):
        inverse = _saved(node, "result2").float()
        kept = _projection(given.numel() // max(given.shape[1], 1), 2)
    else:
        eps = _saved(node, "eps")
        eps = _saved(node, "epsilon") if eps is None else eps
        inverse = (_saved(node, "running_var").float() + eps).rsqrt()
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
    group = math.prod(_saved(node, "normalized_shape") or (0,))
    centred = 2 if _saved(node, "result2") is not None else 1
    inverse = _saved(node, f"result{centred}")
    factor = _square(inverse) * _projection(group, centred)
    weight = _saved(node, "weight")
    return Operation((factor * (1.0 if weight is None else _square(weight)),), "norm")


def _group_norm(node: Any) -> Operation:
    group = _saved(node, "C") * _saved(node, "HxW") // _saved(node, "group")
    weight = _saved(node, "weight")
    factor = _square(_saved(node, "result2")) * _projection(group, 2)
    factor *= 1.0 if weight is None else _square(weight)
    return _per_element((factor,), "norm")


def _projection(group: int, removed: int) -> float:
    """Share of a white gradient that is left once mean and scale are projected out of a group."""
    return max(1.0 - removed / group, 0.0) if group else 1.0


def _softmax(node: Any) -> Operation:
    result = _saved(node, "result").detach().float()
    return Operation((_softmax_factor(result, _dims(node, result.dim())[0]),), "softmax")


def _softmax_factor(share: Tensor, dim: int) -> float:
    square = share.square()
    total = square.sum(dim, keepdim=True)
    return float((square * (1 - 2 * share + total)).mean())


def _log_softmax(node: Any) -> Operation:
    result = _saved(node, "result").detach().float()
    dim = _dims(node, result.dim())[0]
    concentration = float(result.exp().square().sum(dim).mean())
    return Operation((max(1.0 - 2.0 / result.shape[dim] + concentration, 0.0),), "softmax")


def _attention(node: Any) -> Operation:
    """softmax(q k^T scale) v in one kernel: the rules of its parts, on the first sample.

    The Jacobian of softmax removes what is the same for all keys, so v and k count from their mean
    over positions.
    """
    query, key, value = (_saved(node, n)[:1].detach().float() for n in ("query", "key", "value"))
    scale = _saved(node, "scale") or query.shape[-1] ** -0.5
    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    mask = _saved(node, "attn_mask")
    mask = _saved(node, "attn_bias") if mask is None else mask
    if mask is not None and mask.dim() <= 4:
        mask = mask[:1] if mask.dim() == 4 else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if _saved(node, "is_causal"):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    share = scores.softmax(-1)
    centred_key, centred_value = (t - t.mean(-2, keepdim=True) for t in (key, value))
    to_scores = _product(centred_value.transpose(-1, -2), -2) * _softmax_factor(share, -1)
    to_scores *= scale**2
    return Operation(
        (
            to_scores * _product(centred_key, -2),
            to_scores * _product(query, -2),
            float(share.square().sum(-1).mean()),
        ),
        "attention",
    )


def _mean(node: Any) -> Operation:
    return Operation((1.0 / _reduced(node),), "mean", keeps_channels=_same_channels(node))


def _sum(node: Any) -> Operation:
    return Operation((float(_reduced(node)),), "total", keeps_channels=_same_channels(node))


def _reduced(node: Any) -> int:
    sizes = _saved(node, "self_sym_sizes")
    if sizes is None:
        return int(_saved(node, "self_sym_numel"))
    return math.prod(sizes[d] for d in _dims(node, len(sizes))) if sizes else 1


def _max_pool(node: Any) -> Operation:
    """Each gradient goes to one input. Behind a ReLU the chosen ones are active more often."""
    given = _saved(node, "self").detach()
    before = node.next_functions[0][0]
    factor = 1.0
    if before is not None and before.name().startswith("ReluBackward"):
        active = float(torch.count_nonzero(given)) / max(given.numel(), 1)
        index = _saved(node, "result1")
        flat = given.flatten(-(index.dim() - 2)) if index.dim() > 2 else given
        chosen = flat.gather(-1, index.flatten(-(index.dim() - 2)))
        share = float(torch.count_nonzero(chosen)) / max(chosen.numel(), 1)
        factor = share / active if active else 0.0
    return Operation((factor,), "max pool", keeps_channels=_same_channels(node))


def _resample(node: Any) -> Operation:
    """A fixed linear map: its mean squared row norm, from one draw of white noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(output_shape(node), generator=generator)
    saved = _saved(node, "self")
    if saved is not None:
        noise = noise.to(saved)
    back = node(noise)
    back = back[0] if isinstance(back, tuple) else back
    factor = _square(back) * back.numel() / (_square(noise) * noise.numel())
    return Operation((factor,), "resample", keeps_channels=_same_channels(node))


def _join(node: Any) -> Operation:
    """Concatenation and stacking: each part gets its share of the gradient."""
    shape = output_shape(node)
    parts = [
        () if n is None or hasattr(n, "variable") else output_shape(n, i)
        for n, i in node.next_functions
    ]
    factors = tuple(math.prod(part) / math.prod(shape) if part else 0.0 for part in parts)
    stacked = node.name().startswith("Stack")
    if stacked or not all(parts) or _dims(node, len(shape)) != [1]:
        return Operation(factors, keeps_positions=not stacked)
    ends = list(itertools.accumulate(part[1] for part in parts))
    mixes = tuple(_section(end - part[1], end) for part, end in zip(parts, ends, strict=True))
    return Operation(factors, keeps_positions=True, mixes=mixes, channels=shape[1])


def _section(start: int, end: int) -> Mix:
    return lambda channels: channels[start:end]


def _crop(node: Any) -> Operation:
    """Padding: the gradient on the padded border is lost."""
    source, index = node.next_functions[0]
    share = math.prod(output_shape(source, index)) / math.prod(output_shape(node))
    return Operation((share,), keeps_channels=_same_channels(node))


def _masked(node: Any) -> Operation:
    share = float(_saved(node, "mask").float().mean())
    return Operation((1.0 - share, share), "product")


def _where(node: Any) -> Operation:
    share = float(_saved(node, "condition").float().mean())
    factors = (share, 1.0 - share)
    return Operation((0.0, *factors) if len(node.next_functions) == 3 else factors, "product")


def _dropout(node: Any) -> Operation:
    return _per_element((1.0 / (1.0 - _saved(node, "p")),), "product")


_MOVE = (
    "AdaptiveMaxPool2D AdaptiveMaxPool3D Alias Amax Amin AsStrided Copy Diagonal Expand Flip "
    "Gather Index IndexSelect Max Min Repeat Reshape ReshapeAlias Roll Select Slice Split "
    "SplitWithSizes Squeeze Unbind Unfold UnsafeSplit UnsafeSplitWithSizes UnsafeView Unsqueeze "
    "View"
)
_PERMUTE = "Movedim Permute T Transpose"
_ELEMENTWISE = (
    "Abs Atan Celu Clamp ClampMax ClampMin Cos Elu Erf Exp Gelu Hardsigmoid Hardswish Hardtanh "
    "LeakyRelu Log LogSigmoid Mish Pow PreluKernel Reciprocal Rsqrt RreluWithNoise Sigmoid Silu "
    "Sin Softplus Softshrink Sqrt Tanh Threshold"
)
_RESAMPLE = (
    "AdaptiveAvgPool2D AdaptiveAvgPool3D AvgPool2D AvgPool3D Col2Im Im2Col ReflectionPad1D "
    "ReflectionPad2D ReplicationPad1D ReplicationPad2D UpsampleBicubic2D UpsampleBilinear2D "
    "UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleTrilinear3D"
)
_ATTENTION = (
    "ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention "
    "ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu "
    "ScaledDotProductFusedAttentionOverrideable"
)

_BY_RULE: dict[Rule, str] = {
    _move: _MOVE,
    _permute: _PERMUTE,
    _elementwise: _ELEMENTWISE,
    _resample: _RESAMPLE,
    _attention: _ATTENTION,
    _elementwise_move: "Clone Neg ToCopy",
    _add: "Add Rsub Sub",
    _affine: "Addmm Mm",
    _batch_norm: "CudnnBatchNorm MiopenBatchNorm NativeBatchNorm",
    _batched_product: "Bmm",
    _convolution: "Convolution",
    _crop: "ConstantPadNd",
    _divide: "Div",
    _dropout: "NativeDropout",
    _group_norm: "NativeGroupNorm",
    _join: "Cat Stack",
    _layer_norm: "FusedRmsNorm NativeLayerNorm",
    _log_softmax: "LogSoftmax",
    _masked: "MaskedFill",
    _max_pool: "MaxPool2DWithIndices MaxPool3DWithIndices",
    _mean: "Mean",
    _multiply: "Mul",
    _relu: "Relu",
    _softmax: "SafeSoftmax Softmax",
    _sum: "Sum",
    _where: "Where",
}

_RULES: dict[str, Rule] = {kind: rule for rule, kinds in _BY_RULE.items() for kind in kinds.split()}
"""Kind of autograd node -> rule. Names and saved values come from torch's derivatives.yaml."""
