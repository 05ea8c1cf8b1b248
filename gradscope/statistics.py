"""What is measured per tensor: names, units, formulas, and the kernels that compute them.

Norms and extremes are exact. Shares (of zeros and of saturated elements) come from a strided sample
of at most `SAMPLE_LIMIT` elements, the size of an update from one of `UPDATE_LIMIT`: counting over
all elements costs more than everything else together. Smaller tensors are counted whole.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["weight", "activation", "activation_grad"]

KINDS: tuple[Kind, ...] = ("weight", "activation", "activation_grad")
"""``weight``: the gradient of the loss with respect to a parameter; ``activation``: the output of a
module; ``activation_grad``: the gradient of the loss with respect to that output."""

STATISTICS: dict[str, str] = {
    "norm": "L2 norm, accumulated in float32",
    "rms": "norm / sqrt(number of elements)",
    "abs_max": "largest magnitude",
    "zero_fraction": "share of elements that are exactly zero, 0 to 1",
    "nonfinite_fraction": "share of elements that are NaN or Inf, 0 to 1",
    "unclipped_norm": "norm of the gradient when backward had ended, before any clipping",
    "weight_norm": "L2 norm of the parameter itself before the step",
    "update_ratio": "norm(parameter after - before the step) / norm(parameter before)",
    "saturated_fraction": "share of outputs within 1 % of the bounds of a bounded activation",
    "dead_fraction": "share of units whose output was zero on every example recorded so far",
}
"""Name of each statistic, as a column of the table, and its formula."""

SAMPLE_LIMIT = 4096
"""Most elements of one tensor that are counted; the standard error of a share p is
sqrt(p (1 - p) / 4096), at most 0.8 percentage points."""

UPDATE_LIMIT = 16384
"""Most elements of one parameter whose change is measured: 64 KiB a parameter. Updates differ more
from element to element than signs do."""

HISTOGRAM_RANGE = (-40, 24)
"""log2|g| covered by the histogram, one bin per power of two; outliers land in the end bins."""


def elements(tensor: Tensor) -> Tensor:
    """The elements of a tensor as one real vector, without a copy where memory is dense.

    Args:
        tensor: any shape, layout, dtype and device; DTensors give their local shard, sparse
            tensors their stored values, complex ones real and imaginary parts.

    Returns:
        1-d real tensor, in the order of memory (statistics do not depend on the order).
    """
    tensor = tensor.detach()
    if type(tensor) is not Tensor and hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dim() == 1:
        return tensor
    if tensor.is_contiguous():
        return tensor.view(-1)
    for layout in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if layout is torch.channels_last else 5
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
            return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


@functools.cache
def stride_for(numel: int, limit: int) -> int:
    """Stride that takes at most `limit` of `numel` elements: a prime, in step with no axis."""
    if numel <= limit:
        return 1
    stride = -(-numel // limit)
    while any(stride % d == 0 for d in range(2, int(stride**0.5) + 1)):
        stride += 1
    return stride


def sample(tensor: Tensor, limit: int = SAMPLE_LIMIT) -> Tensor:
    """At most `limit` evenly spaced elements: a view where memory is dense, else a copy.

    Args:
        tensor: as for `elements`.
        limit: `SAMPLE_LIMIT` for shares, `UPDATE_LIMIT` for updates.

    Returns:
        1-d real tensor on the same device.
    """
    vector = elements(tensor)
    stride = stride_for(vector.numel(), limit)
    return vector[::stride] if stride > 1 else vector


def norms(vectors: list[Tensor]) -> Tensor:
    """L2 norms of many vectors in one batched call.

    Args:
        vectors: 1-d, real floating dtype, one device.

    Returns:
        float32, shape (len(vectors),), on the vectors' device. No host synchronisation.
    """
    half = any(v.dtype in (torch.float16, torch.bfloat16) for v in vectors)
    if half:  # the sum of squares overflows fp16 beyond 65504
        found = [torch.linalg.vector_norm(v, dtype=torch.float32) for v in vectors]
    else:
        found = list(torch._foreach_norm(vectors, 2.0))
    return torch.stack([n.float() for n in found])


def largest(vectors: list[Tensor]) -> Tensor:
    """Largest magnitudes of many vectors in one batched call.

    Args:
        vectors: as for `norms`.

    Returns:
        float32, shape (len(vectors),); NaN and Inf propagate.
    """
    return torch.stack([n.float() for n in torch._foreach_norm(vectors, torch.inf)])


def zero_shares(samples: list[Tensor]) -> Tensor:
    """Share of zeros in each sample: 1 - norm(sign(x))^2 / n, in two batched calls.

    Counting booleans is several times slower on a CPU than the norm of the signs.

    Args:
        samples: 1-d real, from `sample`, one device.

    Returns:
        float32, shape (len(samples),); NaN where a sample holds NaN or is empty.
    """
    signs = torch._foreach_sign(samples)
    sizes = _sizes(tuple(s.numel() for s in samples), samples[0].device)
    return 1 - (norms(list(signs)).square() / sizes).clamp(max=1.0)


def nonfinite_shares(samples: list[Tensor]) -> Tensor:
    """Share of NaN and Inf in each sample, without a host synchronisation.

    Args:
        samples: 1-d real, from `sample`, one device.

    Returns:
        float32, shape (len(samples),); NaN for an empty sample.
    """
    joined = torch.cat([s.float() for s in samples])
    sizes = _sizes(tuple(s.numel() for s in samples), joined.device)
    counts = (~joined.isfinite()).cumsum(0, dtype=torch.float32)  # exact below 2**24
    ends = counts.index_select(0, (sizes.cumsum(0) - 1).long())
    return torch.diff(ends, prepend=ends.new_zeros(1)) / sizes


def nonfinite_share(tensor: Tensor) -> float:
    """Share of NaN and Inf among all elements; reads the answer on the host."""
    vector = elements(tensor)
    return int(vector.isfinite().logical_not_().sum()) / vector.numel()


@functools.lru_cache(maxsize=64)
def _sizes(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device, dtype=torch.float32)


def log2_histogram(taken: Tensor) -> Tensor:
    """Counts of log2|g| in bins of one power of two.

    Args:
        taken: 1-d floating, from `sample`.

    Returns:
        float32 counts, shape (HISTOGRAM_RANGE[1] - HISTOGRAM_RANGE[0],); zeros and non-finite
        elements are left out.
    """
    low, high = HISTOGRAM_RANGE
    exponent = torch.frexp(taken.float())[1] - 1
    counted = torch.isfinite(taken) & (taken != 0)
    index = exponent.clamp(low, high - 1).sub(low).long()
    counts = torch.zeros(high - low, device=taken.device)
    return counts.index_add_(0, index, counted.float())
