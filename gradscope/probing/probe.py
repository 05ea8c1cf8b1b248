"""probe(): one forward and backward pass at initialisation, recorded; the model stays as it was."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import ModelError, one_line
from gradscope.nested import describe
from gradscope.probing.isolation import call_model, preserved
from gradscope.probing.loss import (
    EVEN,
    Loss,
    loss_of,
)
from gradscope.theory.forecast import Forecast
from gradscope.trace.table import Trace
from gradscope.watching import watch


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
                    value, kind = loss_of(model, outputs, targets, loss, generator)
                    if forecast is not None and step == 0:
                        forecast.read(outputs if kind in EVEN else value)
                _backward(model, value)
                scope.step()
                model.zero_grad(set_to_none=True)
                del outputs, value
        trace = scope.trace()
    if kind in EVEN:  # a loss of ours tells nothing of the user's
        trace = dataclasses.replace(
            trace, structure=dataclasses.replace(trace.structure, loss=None)
        )
    if forecast is not None:
        trace = trace.with_predictions(forecast.predictions(trace.structure.blocks))
    told = {"model": type(model).__name__, "inputs": describe(inputs), "loss": kind, "seed": seed}
    return dataclasses.replace(trace, metadata={**trace.metadata, "probe": told})


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


def _backward(model: nn.Module, value: Tensor) -> None:
    try:
        torch.autograd.backward(value)
    except RuntimeError as error:
        reason = one_line(error, 300)
        raise ModelError(f"backward pass of {type(model).__name__} failed: {reason}") from error
