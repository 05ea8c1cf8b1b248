"""Never healthy for want of looking: what was not recorded is not well."""

import dataclasses
import html
import io

import pytest
import torch
from handwritten import NAMES, Net, geometric
from rich.console import Console
from torch import nn

import gradscope
from gradscope import diagnose
from gradscope.trace.table import RecordedStep, Trace


def train(model, steps=12, *, optimise=True, **options):
    """The diagnosis of a short training of a network on random vectors."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(32, 16)
    with gradscope.watch(model, optimizer, every=1, **options) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if optimise:
                optimizer.step()
    return gradscope.diagnose(scope.trace())


def sound():
    """A network that trains."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def vanishing():
    """Twenty sigmoids in a row."""
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def test_what_was_seen_is_said_of_a_healthy_network_too():
    """Steps, tensors and nothing unseen, in the object, the JSON and the text."""
    diagnosis = train(sound())
    assert diagnosis.is_healthy
    rests = diagnosis.to_dict()["rests_on"]
    assert (rests["steps"], rests["first"], rests["last"]) == (12, 0, 11)
    assert rests["gradients"] == 4
    assert rests["outputs"] == 3
    assert rests["unseen"] == []
    assert "steps 0 to 11" in str(diagnosis)


def recorded(factor):
    """Twelve layers whose gradient changes by a factor each; of it not all is there.

    Steps 10, 15, ... 30, one of them skipped; a frozen weight, two outputs without a gradient.
    """
    net = geometric(Net(12, steps=5), factor)
    net.steps = [RecordedStep(10 + 5 * i, skipped=i == 2) for i in range(5)]
    net.drop("weight", "l1", "weight")
    net.structure = {"frozen": ("l1.weight",)}
    net.drop("activation_grad", "l3")
    net.drop("activation_grad", "l4")
    return dataclasses.replace(net.trace(), metadata={"blind_spots": ["a thing", "two", "a thing"]})


def printed(diagnosis):
    """As a terminal shows it."""
    console = Console(width=200, file=io.StringIO())
    console.print(diagnosis)
    return console.file.getvalue()


def test_what_it_rests_on_is_counted():
    """Four steps that were made, 11 of 12 weights, 10 of 12 outputs, each blind spot once."""
    assert diagnose(recorded(1.0)).to_dict()["rests_on"] == {
        "steps": 4, "first": 10, "last": 30, "gradients": 11, "outputs": 10,
        "unseen": ["a thing", "two"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "healthy"), (0.3, "vanishing"), (3, "exploding")]
)
@pytest.mark.parametrize("told", [str, printed, lambda d: html.unescape(d._repr_html_())])
def test_what_it_rests_on_is_told_of_every_network(told, factor, verdict):
    """In text, in a terminal and in a notebook, whatever the verdict, with what was not seen."""
    diagnosis = diagnose(recorded(factor))
    assert diagnosis.verdict == verdict
    assert (
        "rests on steps 10 to 30 (4 recorded, gradients of 11 parameters and at 10 outputs); "
        "not seen: a thing; two"
    ) in told(diagnosis)


def test_without_outputs_no_network_is_called_healthy():
    """activations=False: level gradients of weights prove nothing, a decay of them shows."""
    diagnosis = train(sound(), activations=False)
    assert diagnosis.verdict == "inconclusive"
    assert "activations=True" in diagnosis.findings[0].remedy
    assert train(vanishing(), activations=False).verdict == "vanishing"


def test_a_compiled_network_is_judged_by_what_is_in_it():
    """Its outputs are seen, in graphs of their own."""
    assert train(torch.compile(sound(), backend="eager")).verdict == "healthy"
    assert train(torch.compile(vanishing(), backend="eager")).verdict == "vanishing"


@pytest.mark.filterwarnings("ignore:gradscope:UserWarning")
def test_a_network_in_a_compiled_function_is_not_called_healthy():
    """Its outputs cannot be seen; the reason is said."""
    model = sound()
    forward = torch.compile(model.forward, backend="eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(12):
            optimizer.zero_grad()
            forward(torch.randn(32, 16)).square().mean().backward()
            optimizer.step()
    diagnosis = gradscope.diagnose(scope.trace())
    assert diagnosis.verdict == "inconclusive"
    (reason,) = diagnosis.rests_on.unseen
    assert "compiled function" in reason
    assert reason in diagnosis.findings[0].message


@pytest.mark.filterwarnings("ignore:gradscope:UserWarning")
def test_no_step_is_no_health():
    """Backward without a step of the optimizer, and no backward at all."""
    for diagnosis in (train(sound(), optimise=False), train(sound(), steps=0)):
        assert diagnosis.verdict == "inconclusive"
        assert "step" in diagnosis.findings[0].remedy
        assert "nothing" in str(diagnosis)


def test_without_activations_deep_networks_are_inconclusive():
    """Level weight gradients prove nothing, however few, as a decay can be masked; one shows."""
    for depth, factor, verdict in (
        (20, 1.0, "inconclusive"),
        (4, 1.0, "inconclusive"),
        (14, 0.5, "vanishing"),
    ):
        net = geometric(Net(depth), 1.0, weights=factor)
        net.columns = {key: v for key, v in net.columns.items() if key[0] == "weight"}
        net.blocks = []
        assert net.diagnose()[0].verdict == verdict


def test_empty_trace_is_inconclusive():
    """No step, no verdict."""
    empty = Trace((), (), torch.empty(0, 0, len(NAMES)), torch.empty(0, 0, dtype=torch.bool))
    diagnosis = diagnose(empty)
    assert diagnosis.verdict == "inconclusive"
    assert "No step was recorded" in str(diagnosis)
