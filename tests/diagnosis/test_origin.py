"""NaN is named where it was made: each origin is written into a trace by hand."""

import math

import pytest
import torch
from handwritten import Net
from torch import nn

import gradscope
from gradscope.trace.structure import LossSide
from gradscope.trace.table import RecordedStep

BAD = [0.0, 0.0, 1.0, 1.0]


def everything_breaks(net, first=0):
    """From step 2 on all gradients are NaN, from a module on."""
    for i in range(first, len(net.blocks)):
        net.put("activation_grad", f"l{i}", nonfinite_fraction=BAD)
    for i in range(len(net.blocks)):
        net.put("weight", f"l{i}", "weight", nonfinite_fraction=BAD)
    return net


def test_made_by_the_optimizer():
    """Weights that are NaN before the forward pass of step 2, after finite gradients."""
    net = everything_breaks(Net(5, steps=4))
    for i in range(5):
        net.put("activation", f"l{i}", nonfinite_fraction=BAD)
        net.put("weight", f"l{i}", "weight", weight_norm=[1.0, 1.0, math.nan, math.nan])
    _, findings = net.diagnose()
    assert findings["non-finite"].where == "optimizer"
    assert "step of the optimizer" in findings["non-finite"].message
    assert findings["non-finite"].since == 2


def test_between_sparse_steps_nobody_is_blamed():
    """Weights broken somewhere in fifty unrecorded steps: an interval, and no parameter's name."""
    net = everything_breaks(Net(5, steps=4))
    net.steps = [RecordedStep(50 * i) for i in range(4)]
    for i in range(5):
        net.put("activation", f"l{i}", nonfinite_fraction=BAD)
        net.put("weight", f"l{i}", "weight", weight_norm=[1.0, 1.0, math.nan, math.nan])
    _, findings = net.diagnose()
    assert "between steps 50 and 100" in findings["non-finite"].message
    assert findings["non-finite"].where == "optimizer"
    assert "every=1" in findings["non-finite"].remedy


def test_made_in_a_forward_pass():
    """l3 gives NaN from finite inputs and weights."""
    net = everything_breaks(Net(5, steps=4))
    for i in (3, 4):
        net.put("activation", f"l{i}", nonfinite_fraction=BAD)
    _, findings = net.diagnose()
    assert findings["non-finite"].where == "l3"
    assert "forward pass" in findings["non-finite"].message


def test_made_by_the_loss():
    """Finite outputs, and a loss that is NaN; where it divides, that is said."""
    net = everything_breaks(Net(5, steps=4))
    net.steps = [RecordedStep(i, loss=1.0 if i < 2 else math.nan) for i in range(4)]
    _, findings = net.diagnose()
    assert findings["non-finite"].where == "loss"
    assert "The loss itself" in findings["non-finite"].message
    net.structure = {"loss": LossSide(("SumBackward0", "DivBackward0"))}
    assert "0/0" in net.diagnose()[1]["non-finite"].message


@pytest.mark.parametrize("maker", [1, 3])
def test_made_in_a_backward_pass(maker):
    """A finite gradient behind a module, NaN before it."""
    net = Net(5, steps=4)
    net.steps = [RecordedStep(i, loss=1.0) for i in range(4)]
    for i in range(maker):
        net.put("activation_grad", f"l{i}", nonfinite_fraction=BAD)
        net.put("weight", f"l{i}", "weight", nonfinite_fraction=BAD)
    _, findings = net.diagnose()
    assert findings["non-finite"].where == f"l{maker}"
    assert "backward pass" in findings["non-finite"].message


class RootOfMasked(nn.Module):
    """The derivative of a root at zero is infinite, and a mask multiplies it by zero."""

    def forward(self, x):
        """Square root of the positive part, exactly zero for half of the inputs."""
        return (x * (x > 0)).sqrt()


def test_a_real_backward_pass_is_named():
    """A root has an infinite derivative at zero, and inf * 0 = NaN: the module is named."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), RootOfMasked(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    diagnosis = gradscope.diagnose(scope.trace())
    assert diagnosis.verdict == "non-finite"
    assert diagnosis.findings[0].where == "1"


def test_non_finite_names_the_first_step_and_tensor():
    """NaN in an activation of step 2 comes before the gradients it makes."""
    net = Net(6, steps=4)
    net.put("activation", "l3", nonfinite_fraction=[0.0, 0.0, 0.1, 0.2])
    net.put("activation", "l4", nonfinite_fraction=[0.0, 0.0, 0.3, 0.2])
    for i in range(6):
        net.put("weight", f"l{i}", "weight", nonfinite_fraction=[0.0, 0.0, 1.0, 1.0])
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "non-finite"
    assert findings["non-finite"].where == "l3"
    assert findings["non-finite"].evidence["step"].value == 2
    assert findings["non-finite"].evidence["parameters"].value == 6
    assert "lower the learning rate" in findings["non-finite"].remedy.lower()


def test_overflow_in_a_skipped_step_is_no_alarm():
    """A GradScaler that skips a step does what it should."""
    net = Net(6, steps=3)
    net.put("weight", "l0", "weight", nonfinite_fraction=[0.0, 1.0, 0.0])
    net.steps[1] = RecordedStep(1, skipped=True)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["skipped-steps"].evidence["skipped"].value == 1
