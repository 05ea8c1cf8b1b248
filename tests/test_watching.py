"""watch() refuses what makes no sense."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning, RecorderError


def test_a_second_scope_is_refused():
    """Watching a watched model is refused; after close it is allowed again."""
    model = nn.Linear(2, 1)
    with gradscope.watch(model), pytest.raises(RecorderError, match="watched already"):
        gradscope.watch(model)
    gradscope.watch(model).close()


def test_compiled_or_not_a_model_is_the_same():
    """A second scope is refused too when either was given the model as compiled."""
    model = nn.Linear(2, 1)
    compiled = torch.compile(model)
    for first, second in ((model, compiled), (compiled, model), (compiled, compiled)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradscopeWarning)
            scope = gradscope.watch(first)
        with pytest.raises(RecorderError, match="watched already"):
            gradscope.watch(second)
        scope.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"max_steps": 3}, "max_steps=3"),
        ({"optimizer": "sgd"}, "torch.optim.Optimizer"),
    ],
)
def test_wrong_arguments(arguments, message):
    """Arguments that make no sense are refused by name."""
    with pytest.raises(RecorderError, match=message):
        gradscope.watch(nn.Linear(2, 1), **arguments)


def test_only_a_module_can_be_watched():
    """Watching something that is no module says what it got."""
    with pytest.raises(RecorderError, match="got function"):
        gradscope.watch(lambda x: x)
