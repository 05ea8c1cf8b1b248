"""probe(): right gradients, right loss, and a model that is as it was, for any kind of model."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradscope import probe
from gradscope.errors import ModelError


def loss_of(trace):
    """What the probe says it differentiated."""
    return trace.metadata["probe"]["loss"]


def weight_norms(trace):
    """Name of a parameter -> norm of its gradient in the first step."""
    tensors, norms = trace.series("weight", "norm")
    return {t.name: float(n) for t, n in zip(tensors, norms[0], strict=True)}


def convnet():
    """Convolution, batch norm, dropout: everything with state."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize("training", [True, False])
def test_model_comes_back_bit_for_bit(training):
    """Parameters, running statistics, gradients, hooks, mode, flags and generators."""
    model = convnet().train(training)
    model[0].weight.requires_grad_(False)
    model[6](torch.ones(1, 8)).sum().backward()
    handle = model[0].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    grads = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in
             model.named_parameters()}  # fmt: skip
    generator = torch.get_rng_state()
    probe(model, torch.randn(4, 3, 8, 8))
    generator_after = torch.get_rng_state()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name][0]
        assert parameter.grad is None or torch.equal(parameter.grad, grads[name][1])
    assert not model[0].weight.requires_grad
    assert model[6].weight.requires_grad
    assert model.training is training
    assert all(m.training is training for m in model.modules())
    assert list(model[0]._forward_hooks) == [handle.id]
    assert not any(m._forward_hooks for m in model if m is not model[0])
    torch.set_rng_state(generator)
    torch.randn(4, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), generator_after)


def test_gradients_are_those_of_autograd():
    """The recorded norms are what plain autograd gives for the same loss."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    trace = probe(model, x, y)
    functional.cross_entropy(model(x), y).backward()
    expected = {n: float(p.grad.norm()) for n, p in model.named_parameters()}
    assert weight_norms(trace) == pytest.approx(expected, rel=1e-5)
    assert loss_of(trace) == "cross entropy"


def test_probe_is_deterministic_and_seeded():
    """Equal seeds give equal traces whatever the generator's state; other seeds other ones."""
    model, x = convnet(), torch.randn(4, 3, 8, 8)
    first = probe(model, x, seed=3)
    torch.manual_seed(99)
    second = probe(model, x, seed=3)
    other = probe(model, x, seed=4)
    assert torch.equal(first.values.nan_to_num(-1), second.values.nan_to_num(-1))
    assert weight_norms(first) != weight_norms(other)


def test_several_steps():
    """Each pass is a step of its own, with its own dropout and targets."""
    trace = probe(convnet(), torch.randn(4, 3, 8, 8), steps=3)
    assert [s.step for s in trace.steps] == [0, 1, 2]
    _, norms = trace.series("weight", "norm")
    assert len({float(n) for n in norms[:, 0]}) == 3
    with pytest.raises(ModelError, match="steps=0"):
        probe(convnet(), torch.randn(4, 3, 8, 8), steps=0)


@dataclass
class Output:
    """As Hugging Face models return."""

    loss: torch.Tensor | None
    logits: torch.Tensor


class Own(nn.Module):
    """Returns what it is told to."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        """Logits in the form that was asked for."""
        logits = self.linear(x)
        loss = functional.cross_entropy(logits, labels) if labels is not None else None
        return {
            "dataclass": Output(loss, logits),
            "dict": {"loss": loss, "logits": logits},
            "losses": {"a": logits.square().mean(), "b": logits.abs().mean()},
            "tuple": (logits, logits.unsqueeze(2)),
            "map": logits[:, :, None, None].expand(-1, -1, 5, 5),
            "logits": logits,
            "detached": logits.detach(),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("dataclass", True, "the model's own loss"),
        ("dict", True, "the model's own loss"),
        ("dict", False, "cross entropy against random classes"),
        ("losses", False, "sum of the model's own losses"),
        ("tuple", False, "random linear functional of all outputs"),
        ("map", False, "random linear functional of all outputs"),
        ("logits", False, "cross entropy against random classes"),
    ],
)
def test_loss_without_targets(kind, labels, expected):
    """The loss follows from what the model returns; keyword inputs are passed by name."""
    inputs = {"x": torch.randn(6, 4)}
    if labels:
        inputs["labels"] = torch.randint(3, (6,))
    trace = probe(Own(kind), inputs)
    assert loss_of(trace) == expected
    assert all(norm > 0 for norm in weight_norms(trace).values())


def test_own_loss_is_the_one_differentiated():
    """The gradient is that of the loss in the output, not of anything else."""
    model, x, y = Own("dict"), torch.randn(6, 4), torch.randint(3, (6,))
    trace = probe(model, {"x": x, "labels": y})
    model(x, y)["loss"].backward()
    assert weight_norms(trace)["linear.weight"] == pytest.approx(
        float(model.linear.weight.grad.norm()), rel=1e-5
    )


def test_functional_has_a_gradient_of_norm_one():
    """Without classes, dL/d(outputs) has norm 1 over all outputs together."""
    model = nn.Conv2d(3, 5, 1)
    trace = probe(model, torch.randn(2, 3, 4, 4))
    _, norms = trace.series("activation_grad", "norm")
    assert float(norms[0, 0]) == pytest.approx(1.0, rel=1e-5)


def test_targets_of_other_kinds():
    """Text has classes last; regression compares shapes; a dict of logits is understood."""
    sequence = nn.Linear(4, 9)
    x = torch.randn(2, 7, 4)
    trace = probe(sequence, x, torch.randint(9, (2, 7)))
    assert loss_of(trace) == "cross entropy"
    assert loss_of(probe(sequence, x, torch.randn(2, 7, 9))) == "mean squared error"
    assert loss_of(probe(Own("dict"), torch.randn(6, 4), torch.randint(3, (6,)))) == "cross entropy"


def test_own_loss_function():
    """A loss that is given is called with the output, and the targets where there are any."""
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    trace = probe(model, x, loss=lambda out: out.square().sum())
    (model(x).square().sum()).backward()
    assert weight_norms(trace)["weight"] == pytest.approx(float(model.weight.grad.norm()), rel=1e-5)
    assert loss_of(probe(model, x, torch.zeros(5, 2), loss=nn.SmoothL1Loss())) == "SmoothL1Loss"


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "loss", "message"),
    [
        (nn.Linear(3, 2), torch.ones(2, 4), None, None, r"\(2, 4\) float32.*--input"),
        (Own("detached"), torch.ones(2, 4), None, None, "no output of Own needs a gradient"),
        (nn.Linear(3, 2).requires_grad_(False), torch.ones(2, 3), None, None, "frozen"),
        (nn.Linear(3, 2), torch.ones(2, 3), torch.tensor([0, 5]), None, r"\[0, 5\]"),
        (nn.Linear(3, 2), torch.ones(2, 3), torch.ones(2, 7), None, r"\(2, 7\).*do not fit"),
        (nn.Linear(3, 2), torch.ones(2, 3), None, lambda y: y, "one element"),
        (nn.Linear(3, 2), torch.ones(2, 3), None, lambda y: y.sum().detach(), "detach"),
        (nn.Linear(3, 2), torch.ones(2, 3), None, lambda _y: "text", "the loss is str"),
        (nn.BatchNorm1d(3), torch.ones(1, 3), None, None, "more than 1 value per channel"),
    ],
)
def test_bad_input_is_one_line(model, inputs, targets, loss, message):
    """Each misuse ends in one line that names what is wrong."""
    with pytest.raises(ModelError, match=message) as caught:
        probe(model, inputs, targets, loss=loss)
    assert "\n" not in str(caught.value)


def test_one_layer_and_two_thousand():
    """The shortest and a very deep network are probed, with a prediction for each block."""
    assert len(probe(nn.Linear(3, 2), torch.ones(2, 3))) == 4
    depth = 2000
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))
    trace = probe(deep, torch.randn(2, 4))
    assert len(trace.structure.blocks) == len(trace.predictions) == depth


def test_compiled_model_is_probed_uncompiled():
    """torch.compile does not hide the activations from the probe."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    trace = probe(torch.compile(model, backend="eager"), torch.randn(5, 3))
    assert len(trace.structure.blocks) == 2
    model.compile(backend="eager")
    assert len(probe(model, torch.randn(5, 3)).structure.blocks) == 2


def test_predictions_stand_beside_blocks():
    """One prediction per block, under its name, and none when not asked for."""
    trace = probe(convnet(), torch.randn(4, 3, 8, 8))
    assert [p.module for p in trace.predictions] == [b.name for b in trace.structure.blocks]
    assert not probe(convnet(), torch.randn(4, 3, 8, 8), predict=False).predictions


def test_probe_is_the_function_whatever_was_imported_before():
    """Loading the module first must not hide the function of the package."""
    import gradscope
    import gradscope.probing

    assert gradscope.probe is gradscope.probing.probe


@pytest.mark.parametrize("default", ["device", "dtype"])
def test_the_default_of_the_process_changes_no_number(default):
    """Loss, gradients and prediction are those without it, on a CPU and in single precision."""
    model, images = convnet(), torch.randn(4, 3, 8, 8)
    for inputs, targets in ((images, torch.arange(4)), (images, None), (images, [0, 1, 2, 3])):
        plain = probe(model, inputs, targets)
        if default == "dtype":
            torch.set_default_dtype(torch.bfloat16)
        else:
            torch.set_default_device("meta")
        try:
            found = probe(model, inputs, targets)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert torch.equal(found.values.nan_to_num(), plain.values.nan_to_num())
        assert found.predictions == plain.predictions
