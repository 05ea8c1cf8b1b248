"""Running a user's model and leaving it as it was, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradscope.errors import ModelError, named
from gradscope.nested import describe
from gradscope.seeding import seeded

_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


@contextmanager
def preserved(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Give a module and the random generators back as they were, whatever ran inside.

    Restored: values of parameters and buffers (in place, so that views and optimizers stay valid),
    ``.grad`` (the very objects), ``requires_grad``, training mode, hooks, plain attributes of
    modules, the generators of Python, NumPy (if loaded), torch and each CUDA device. Inside, no
    parameter has a ``.grad`` and autograd is on.

    Args:
        model: what will be run.
        seed: see `seeded`.

    Raises:
        ModelError: the model has lazy parameters that no forward pass has shaped yet.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise ModelError(
                f"parameter '{name}' of {type(model).__name__} is lazy and has no shape yet; "
                "run the model once before it is probed"
            )
    tensors = [*model.parameters(), *model.buffers()]
    values = [t.detach().clone() for t in tensors]
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    attributes = [(m, dict(m.__dict__), _registries(m)) for m in model.modules()]
    try:
        for parameter, _, _ in grads:
            parameter.grad = None
        with seeded(seed), torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        for module, own, registries in attributes:
            module.__dict__.clear()
            module.__dict__.update(own)
            for name, content in registries.items():
                module.__dict__[name].clear()
                module.__dict__[name].update(content)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                if not _identical(tensor, value):
                    tensor.copy_(value)
        for parameter, grad, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, on a tuple or list of positional arguments, or on keyword ones.

    Raises:
        ModelError: the forward pass raised; the message names the module, the shapes and a remedy.
    """
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, (tuple, list)):
            return model(*inputs)
        return model(inputs)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{type(model).__name__} ran out of memory on inputs {describe(inputs)}; "
            "give a smaller batch (gradscope probe --batch)"
        ) from error
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AssertionError,
            AttributeError, NotImplementedError) as error:  # fmt: skip
        where = _failing_module(model, error.__traceback__)
        raise ModelError(
            f"{type(model).__name__} failed {where}on inputs {describe(inputs)}: "
            f"{named(error, 200)}; give inputs of the shape and type that its forward "
            "takes (gradscope probe --input C,H,W), a mapping for keyword arguments"
        ) from error


def _registries(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: dict(module.__dict__[name]) for name in _REGISTRIES if name in module.__dict__}


def _identical(a: Tensor, b: Tensor) -> bool:
    """Bitwise, so that NaN equals itself and 0.0 is not -0.0."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.detach().view(kind), b.view(kind))


def _failing_module(model: nn.Module, trace: TracebackType | None) -> str:
    """Name of the innermost module of the model whose forward was running."""
    names = {id(module): name for name, module in model.named_modules()}
    where = ""
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        name = names.get(id(module), "") if isinstance(module, nn.Module) else ""
        if name:
            where = f"in '{name}' ({type(module).__name__}) "
        trace = trace.tb_next
    return where
