"""What is measured per tensor: names, units, formulas, and the torch operations that compute them.

Norms and extremes are exact. Where shares would cost a pass over memory each they come from a
strided sample of at most `SAMPLE_LIMIT` elements; the size of an update comes from runs of
neighbours, `UPDATE_LIMIT` elements in all. Smaller tensors are measured whole.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from gradscope.trace.vocabulary import HISTOGRAM_RANGE

SAMPLE_LIMIT = 4096
"""Most elements of one tensor that are counted; the standard error of a share p is
sqrt(p (1 - p) / 4096), at most 0.8 percentage points."""

UPDATE_LIMIT = 8192
"""Most elements of one parameter whose change is measured: 32 KiB a parameter. Updates differ more
from element to element than signs do."""

RUN = 16
"""Neighbours that are sampled together: in float32 one cache line, the least that memory gives."""


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor has numbers of its own in one piece of memory.

    Those on the meta device have none, nor fake ones, those within the transforms of torch.func
    and of functionalisation; nested ones have several pieces.
    """
    kind = type(tensor)
    if kind is not Tensor and kind is not nn.Parameter:
        plain = kind.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
        if not plain and not hasattr(tensor, "to_local"):  # a DTensor has a local shard
            return False
    return not (
        tensor.is_meta
        or tensor.is_nested
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
        or torch._is_functional_tensor(tensor)
    )


def local(tensor: Tensor) -> Tensor:
    """The tensor without its history, as a plain one; of a DTensor the local shard."""
    tensor = tensor.detach()
    if type(tensor) is not Tensor:
        if hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        tensor = tensor.as_subclass(Tensor)
    return tensor


def memory(tensor: Tensor) -> int:
    """Tells the memory that a tensor lies in; views share it."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def elements(tensor: Tensor) -> Tensor:
    """The elements of a tensor as one real vector, without a copy where memory is dense.

    Args:
        tensor: any shape, layout, dtype and device; DTensors give their local shard, sparse
            tensors their stored values, complex ones real and imaginary parts.

    Returns:
        1-d real contiguous tensor, in the order of memory (statistics do not depend on the order).
    """
    tensor = local(tensor)
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_contiguous():
        return tensor.view(-1)
    for layout in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if layout is torch.channels_last else 5
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
            return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1).contiguous()


def numel(tensor: Tensor) -> int:
    """Number of real elements of the whole tensor; a complex one counts as two."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


@functools.cache
def stride_for(n: int, limit: int) -> int:
    """Stride that takes at most `limit` of `n` elements: a prime, in step with no axis."""
    if n <= limit:
        return 1
    stride = -(-n // limit)
    while any(stride % d == 0 for d in range(2, int(stride**0.5) + 1)):
        stride += 1
    return stride


def sample(tensor: Tensor) -> Tensor:
    """At most `SAMPLE_LIMIT` evenly spaced elements: a view where memory is dense, else a copy.

    Args:
        tensor: as for `elements`.

    Returns:
        1-d real tensor on the same device.
    """
    vector = elements(tensor)
    stride = stride_for(vector.numel(), SAMPLE_LIMIT)
    return vector[::stride] if stride > 1 else vector


@functools.cache
def runs_for(n: int) -> tuple[int, int, int]:
    """Length, distance and number of the runs that stand for a vector of `n` elements."""
    if n <= UPDATE_LIMIT:
        return n, n, 1
    lines = n // RUN
    stride = stride_for(lines, UPDATE_LIMIT // RUN)
    return RUN, RUN * stride, -(-lines // stride)


def runs(vector: Tensor) -> Tensor:
    """Evenly spaced runs of neighbours, at most `UPDATE_LIMIT` elements, as a view.

    Args:
        vector: from `elements`.

    Returns:
        2-d view: run, element of the run.
    """
    length, stride, n = runs_for(vector.numel())
    return vector.as_strided((n, length), (stride, 1))


def norms(tensors: list[Tensor]) -> Tensor:
    """L2 norms of many tensors, on a GPU in one batched call.

    Args:
        tensors: real floating dtype, one device.

    Returns:
        float32, shape (len(tensors),), on the tensors' device. No host synchronisation.
    """
    if any(t.dtype != torch.float32 or t.device.type == "cpu" for t in tensors):
        found = torch.empty(len(tensors), dtype=torch.float32, device=tensors[0].device)
        for tensor, cell in zip(tensors, found.unbind(), strict=True):
            write_norm(tensor, cell)
        return found
    return torch.stack(torch._foreach_norm(tensors, 2.0))


def write_norm(tensor: Tensor, cell: Tensor) -> None:
    """Write the L2 norm of one tensor into a 0-d float32 tensor on its device."""
    if tensor.device.type == "cpu" or tensor.dtype == torch.float64:  # `out` may not narrow
        cell.copy_(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    else:  # the sum of squares overflows fp16 beyond 65504
        torch.linalg.vector_norm(tensor, dtype=torch.float32, out=cell)


def largest(tensors: list[Tensor]) -> Tensor:
    """Largest magnitudes of many tensors, on a GPU in one batched call.

    Args:
        tensors: as for `norms`, none of them empty.

    Returns:
        float32, shape (len(tensors),); NaN and Inf propagate.
    """
    if tensors[0].device.type == "cpu":
        found = torch.empty(len(tensors), dtype=torch.float32, device="cpu")
        for tensor, cell in zip(tensors, found.unbind(), strict=True):
            write_largest(tensor, cell)
        return found
    return torch.stack([n.float() for n in torch._foreach_norm(tensors, torch.inf)])


def write_largest(tensor: Tensor, cell: Tensor) -> None:
    """Write the largest magnitude in one tensor into a 0-d float32 tensor on its device."""
    if tensor.device.type == "cpu":  # where that norm is ten times slower than the extremes
        low, high = torch.aminmax(tensor)
        cell.copy_(torch.maximum(-low, high))
    else:
        cell.copy_(torch.linalg.vector_norm(tensor, torch.inf))


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


def saturated_share(tensor: Tensor, low: float, high: float) -> Tensor:
    """Share of the sampled outputs within 1 % of the bounds of a bounded activation.

    Args:
        tensor: as for `elements`.
        low: least value that the activation can give.
        high: largest value that it can give.

    Returns:
        0-d float32 tensor, 0 to 1.
    """
    outer = (sample(tensor) - (low + high) / 2).abs() >= 0.99 * (high - low) / 2
    return outer.float().mean()


def nonfinite_shares(samples: list[Tensor]) -> Tensor:
    """Share of NaN and Inf in each sample, without a host synchronisation.

    Args:
        samples: 1-d real, from `sample`, one device.

    Returns:
        float32, shape (len(samples),); NaN for an empty sample.
    """
    numbers = [s.numel() for s in samples]
    joined = torch.cat([s.float() for s in samples])
    broken = torch.split((~joined.isfinite()).float(), numbers)
    # Counted as squares of norms: a running sum has no deterministic form on a GPU.
    return norms(list(broken)).square().round() / _sizes(tuple(numbers), joined.device)


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
    counts = torch.zeros(high - low, dtype=torch.float32, device=taken.device)
    return counts.index_add_(0, index, counted.float())
