"""The operations by which a compiled graph has its tensors read, forwards and backwards.

To compilers they are functions of their arguments and nothing else, so that no order, no copy and
no fusion of the rest depends on what they do: a reader gives back the number of the run that it was
given, the reader of a gradient the gradient itself. Whoever compiles the backward pass finds the
latter in it because a hook at the tensor puts it there while the pass is traced.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Run(Protocol):
    """One run of a compiled graph."""

    def output(self, site: int, tensor: Tensor) -> None:
        """Take the tensor of a place."""

    def gradient(self, site: int, gradient: Tensor) -> None:
        """Take the gradient at a place."""

    def direct(self, site: int, tensor: Tensor) -> None:
        """Take the tensor of a place in a graph that is not compiled further, and wait there."""


NO_RUN = torch.tensor(0, device="cpu")
"""Number of a run that nobody wants to know of."""

_RUNS: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()
_number = 0


def begin(run: Run) -> Tensor:
    """The number of a run, 0-d in main memory, by which its readers know it while it is alive."""
    global _number  # noqa: PLW0603 - one for the process, as the operations are
    _number += 1
    _RUNS[_number] = run
    return torch.tensor(_number, device="cpu")


def read(tensor: Tensor, token: Tensor, site: int) -> Tensor:
    """Stands in a graph behind a place.

    Args:
        tensor: what is to be read.
        token: number of the run.
        site: number of the place.

    Returns:
        The token again, for the next reader.
    """
    if type(tensor) in {Tensor, nn.Parameter}:  # the graph is run as it is
        run = _RUNS.get(int(token))
        if run is not None:
            run.direct(site, tensor)
        return token
    token = _OPERATORS.read(tensor.detach(), token, site)
    if tensor.requires_grad:
        tensor.register_hook(  # type: ignore[no-untyped-call]  # torch's stub
            lambda gradient: _OPERATORS.read_gradient(gradient, token, site)
        )
    return token


def _read(tensor: Tensor, token: Tensor, site: int) -> Tensor:
    run = _RUNS.get(int(token))
    if run is not None:
        run.output(site, tensor)
    return token.clone()


def _read_gradient(gradient: Tensor, token: Tensor, site: int) -> Tensor:
    run = _RUNS.get(int(token))
    if run is not None:
        run.gradient(site, gradient)
    return gradient.clone()


def _free_namespace() -> str:
    """For the operators of this copy of the module: it may be loaded again, or beside another."""
    names = ("gradscope" + (f"_{i}" if i else "") for i in itertools.count())
    return next(name for name in names if not hasattr(getattr(torch.ops, name), "read"))


_NAMESPACE = _free_namespace()
_LIBRARY: Any = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]  # torch's
for _name, _schema, _kernel in (
    ("read", "(Tensor tensor, Tensor token, int site) -> Tensor", _read),
    ("read_gradient", "(Tensor gradient, Tensor token, int site) -> Tensor", _read_gradient),
):
    # Kernels in Python cannot be replayed by a CUDA graph.
    _tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides, torch.Tag.cudagraph_unsafe)
    _LIBRARY.define(_name + _schema, tags=_tags)
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
_OPERATORS: Any = getattr(torch.ops, _NAMESPACE)


def _fake_read(tensor: Tensor, token: Tensor, site: int) -> Tensor:
    del tensor, site
    return token.clone()


def _fake_read_gradient(gradient: Tensor, token: Tensor, site: int) -> Tensor:
    del token, site
    return gradient.clone()


torch.library.register_fake(f"{_NAMESPACE}::read", _fake_read, lib=_LIBRARY)
torch.library.register_fake(f"{_NAMESPACE}::read_gradient", _fake_read_gradient, lib=_LIBRARY)
