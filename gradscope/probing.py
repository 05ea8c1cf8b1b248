"""probe(): one forward and backward pass at initialisation, recorded; the model stays as it was."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.errors import ModelError
from gradscope.recorder import watch
from gradscope.state import call_model, describe, preserved, tensors_in
from gradscope.theory import Forecast
from gradscope.trace import Trace

Loss = Callable[..., Tensor]


def probe(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss | None = None,
    steps: int = 1,
    seed: int = 0,
    predict: bool = True,
) -> Trace:
    """Run a network forward and backward without training it, and record the gradients.

    The loss, where none is given, is the first of these that applies:

    - with ``targets``: cross entropy for integer ones, mean squared error for others;
    - the ``loss`` that the model itself returns, as Hugging Face models do;
    - the sum of all outputs, where all are scalars, as of a detection model in training;
    - cross entropy against random classes, where all outputs are of shape (samples, classes);
    - a random linear functional of all outputs, with a gradient of norm 1.

    Args:
        model: any module, in the mode in which it is to be probed.
        inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword ones.
        targets: what the loss compares the output with.
        loss: called as ``loss(output, targets)``, or ``loss(output)`` without targets.
        steps: how many passes to record; they differ in dropout and random targets.
        seed: of dropout, random targets and the functional. torch's own generators come back as
            they were.
        predict: put what theory predicts into ``trace.predictions``, one per block.

    Returns:
        A trace of `steps` steps. ``metadata["probe"]`` tells the loss and the inputs.

    Raises:
        ModelError: the model does not run on the inputs, or no gradient comes out.

    Example:
        >>> import torch, gradscope
        >>> trace = gradscope.probe(torch.nn.Linear(3, 2), torch.ones(4, 3))
        >>> trace.metadata["probe"]["loss"]
        'cross entropy against random classes'
    """
    if steps < 1:
        raise ModelError(f"steps={steps}: a probe needs at least one")
    model = getattr(model, "_orig_mod", model)
    forecast = Forecast(model) if predict else None
    with preserved(model, seed), _eager(model):
        generator = torch.Generator().manual_seed(seed)
        with watch(model, every=1, max_steps=max(steps, 32)) as scope:
            for step in range(steps):
                note = forecast if forecast is not None and step == 0 else nullcontext()
                with note:
                    outputs = call_model(model, inputs)
                    value, kind = _loss(model, outputs, targets, loss, generator)
                    if forecast is not None and step == 0:
                        forecast.read(outputs if kind in _EVEN else value)
                _backward(model, value)
                scope.step()
                model.zero_grad(set_to_none=True)
                del outputs, value
        trace = scope.trace()
    if forecast is not None:
        trace = trace.with_predictions(forecast.predictions(trace.structure.blocks))
    told = {"model": type(model).__name__, "inputs": describe(inputs), "loss": kind, "seed": seed}
    return dataclasses.replace(trace, metadata={**trace.metadata, "probe": told})


_FUNCTIONAL = "random linear functional of all outputs"
_RANDOM_CLASSES = "cross entropy against random classes"
_EVEN = (_FUNCTIONAL, _RANDOM_CLASSES)
"""Losses whose gradient is spread evenly over all outputs."""


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Run compiled modules uncompiled, so that their outputs can be seen; inside `preserved`."""
    for module in model.modules():
        if module._compiled_call_impl is not None:  # noqa: SLF001 - compile() has no public undo
            module._compiled_call_impl = None  # noqa: SLF001
    if "torch._dynamo" in sys.modules:  # loading it takes seconds, and without it nothing compiles
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _loss(
    model: nn.Module, outputs: Any, targets: Any, loss: Loss | None, generator: torch.Generator
) -> tuple[Tensor, str]:
    """The value to differentiate and, for people, what it is."""
    reached = [t for t in tensors_in(outputs) if t.requires_grad and t.numel()]
    if not reached:
        raise ModelError(
            f"no output of {type(model).__name__} needs a gradient ({describe(outputs)}): "
            "every parameter is frozen, or the output is detached; unfreeze what is to be trained"
        )
    if loss is not None:
        value = loss(outputs) if targets is None else loss(outputs, targets)
        return _checked(value, "the loss"), getattr(loss, "__name__", type(loss).__name__)
    if targets is not None:
        return _supervised(outputs, targets)
    own = _member(outputs, "loss")
    if isinstance(own, Tensor) and own.requires_grad:
        return _checked(own, "the model's own loss"), "the model's own loss"
    if all(t.dim() == 0 for t in reached):
        return torch.stack([t.float() for t in reached]).sum(), "sum of the model's own losses"
    if all(t.dim() == 2 and t.shape[1] > 1 and t.is_floating_point() for t in reached):
        return _random_classes(reached, generator), _RANDOM_CLASSES
    return _random_functional(reached, generator), _FUNCTIONAL


def _supervised(outputs: Any, targets: Any) -> tuple[Tensor, str]:
    logits = next(
        (m for m in (_member(outputs, n) for n in ("logits", "out")) if isinstance(m, Tensor)),
        tensors_in(outputs)[0],
    )
    if not isinstance(targets, Tensor):
        targets = torch.as_tensor(targets)
    targets = targets.to(logits.device)
    if not targets.is_floating_point():
        targets = targets.long()
        if logits.dim() > 2 and logits.shape[:-1] == targets.shape:  # classes come last in text
            logits, targets = logits.flatten(0, -2), targets.flatten()
        try:
            return functional.cross_entropy(logits.float(), targets), "cross entropy"
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelError(
                f"cross entropy of output {describe(logits)} with targets {describe(targets)} in "
                f"{_range(targets)} failed: {error}; give classes below the width of the output, "
                "or loss="
            ) from error
    if targets.shape != logits.shape:
        raise ModelError(
            f"targets {describe(targets)} do not fit the output {describe(logits)}; "
            "give integer classes, targets of the output's shape, or loss="
        )
    return functional.mse_loss(logits.float(), targets.float()), "mean squared error"


def _random_classes(logits: list[Tensor], generator: torch.Generator) -> Tensor:
    losses = []
    for each in logits:
        classes = torch.randint(each.shape[1], each.shape[:1], generator=generator)
        losses.append(functional.cross_entropy(each.float(), classes.to(each.device)))
    return torch.stack(losses).sum()


def _random_functional(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    real = [torch.view_as_real(t) if t.is_complex() else t for t in outputs]
    directions = [torch.randn(t.shape, generator=generator) for t in real]
    length = math.sqrt(sum(float(d.square().sum()) for d in directions))
    parts = [
        ((d / length).to(t.device) * t.float()).sum() for d, t in zip(directions, real, strict=True)
    ]
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()


def _member(outputs: Any, name: str) -> Any:
    """What a mapping, dataclass or named tuple holds under a name, else None."""
    if isinstance(outputs, Mapping):
        return outputs.get(name)
    return None if isinstance(outputs, Tensor) else getattr(outputs, name, None)


def _checked(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ModelError(f"{what} is {describe(value)}; a loss is a tensor with one element")
    if not value.requires_grad:
        raise ModelError(f"{what} does not depend on any parameter; do not detach the output")
    return value.reshape(())


def _range(targets: Tensor) -> str:
    return f"[{int(targets.min())}, {int(targets.max())}]" if targets.numel() else "[]"


def _backward(model: nn.Module, value: Tensor) -> None:
    try:
        torch.autograd.backward(value)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"backward pass of {type(model).__name__} failed: {reason}") from error
