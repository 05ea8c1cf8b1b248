"""What of a step's passes and outputs is recorded, and what is said of the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
from gradscope.recording.eligible import MAX_CALLS, MAX_OUTPUTS


class Loop(nn.Module):
    """One layer, called again and again."""

    def __init__(self, calls):
        super().__init__()
        self.cell, self.calls = nn.Linear(2, 2), calls

    def forward(self, x):
        """The layer, so many times."""
        for _ in range(self.calls):
            x = self.cell(x)
        return x


class Many(nn.Module):
    """A layer that gives many tensors in one call."""

    def __init__(self, outputs):
        super().__init__()
        self.parts = Parts(outputs)

    def forward(self, x):
        """Their sum."""
        return sum(self.parts(x))


class Parts(nn.Module):
    """What `Many` calls."""

    def __init__(self, outputs):
        super().__init__()
        self.weight, self.outputs = nn.Parameter(torch.ones(2)), outputs

    def forward(self, x):
        """Multiples of the input."""
        return [x * self.weight * i for i in range(1, self.outputs + 1)]


def watched(model, steps=1):
    """The trace of a few steps."""
    with gradscope.watch(model, every=1) as scope:
        for _ in range(steps):
            model(torch.randn(3, 2)).sum().backward()
            scope.step()
    return scope.trace()


@pytest.mark.parametrize(
    ("model", "limit", "said"),
    [
        (Loop, MAX_CALLS, "'cell' ran more than 256 times in a step"),
        (Many, MAX_OUTPUTS, "'parts' gave more than 64 tensors in a call"),
    ],
)
def test_what_goes_beyond_the_limits_is_said(model, limit, said):
    """One line names the module, once; up to the limit all is recorded and nothing said."""
    name = said.split("'")[1]
    for beyond in (0, 5):
        trace = watched(model(limit + beyond), steps=2)
        told = [line for line in trace.metadata["blind_spots"] if line.startswith(said)]
        assert len(told) == bool(beyond)
        taken = [t for t in trace.tensors if t.kind == "activation_grad" and t.module == name]
        assert len(taken) == limit


def test_a_pass_that_gives_classes_does_not_count():
    """A validation pass without no_grad within a recorded step: only what is trained on is left."""

    class Judge(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            logits = self.linear(x)
            return logits if self.training else logits.argmax(1)

    model, batch = Judge(), torch.randn(8, 4)
    with gradscope.watch(model, every=1) as scope:
        for _ in range(2):
            model.eval()(100 * torch.randn(2, 4))
            model.train()(batch).sum().backward()
            scope.step()
    trace = scope.trace()
    outputs = [t for t in trace.tensors if t.kind == "activation"]
    assert {(t.module, t.call) for t in outputs} <= {("linear", 0), ("", 0)}
    rows = trace.to_pandas().query("kind == 'activation' and module == 'linear'")
    expected = float(model.linear(batch).detach().norm())
    assert rows.norm.tolist() == [pytest.approx(expected)] * 2


def test_what_only_a_pass_without_a_loss_runs_is_not_in_the_table():
    """Of a pass that does not count, no output stays that the pass after it does not give again."""

    class Judge(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.temper = nn.Linear(4, 3), nn.Softmax(1)

        def forward(self, x):
            logits = self.linear(x)
            return logits if self.training else self.temper(logits).argmax(1)

    model = Judge()
    with gradscope.watch(model, every=1) as scope:
        for _ in range(2):
            model.eval()(torch.randn(2, 4))
            model.train()(torch.randn(8, 4)).sum().backward()
            scope.step()
    rows = scope.trace().to_pandas().query("kind == 'activation'")
    assert set(rows.module) == {"linear"}
