"""Causes first: what follows from a cause is not told beside it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradscope import diagnose, watch
from gradscope.diagnosis.folding import folded
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict


def finding(kind, *, since=None, dead=0.8):
    """An error of a kind."""
    evidence = {"dead": Evidence(dead, "share of units")}
    return Finding(kind, Severity.ERROR, "there", "so it is", evidence, since=since)


@pytest.mark.parametrize(("found", "told"), [
    (["target-scale", "updates-too-large", "exploding-forward"], {"target-scale"}),
    (["disconnected", "no-gradients"], {"disconnected"}),
    (["non-finite", "non-finite-loss"], {"non-finite"}),
    (["likelihood-of-logits", "unbounded-loss", "not-learning"], {"likelihood-of-logits"}),
    (["vanishing", "updates-too-small"], {"vanishing"}),
    (["underflow", "updates-too-small"], {"underflow", "updates-too-small"}),
    (["clipped", "dropout-too-large"], {"clipped", "dropout-too-large"}),
])  # fmt: skip
def test_what_follows_is_left_out(found, told):
    """Whatever the order."""
    for order in (found, found[::-1]):
        assert {f.kind for f in folded(finding(kind) for kind in order)} == told


def test_dead_units_make_a_collapse_where_nothing_passes():
    """A layer that is dead in part follows from a collapse; one that is wholly dead makes it."""
    part = folded([finding("collapse"), finding("dead-units", dead=0.8)])
    whole = folded([finding("collapse"), finding("dead-units", dead=1.0)])
    assert [f.kind for f in part] == ["collapse"]
    assert [f.kind for f in whole] == ["dead-units"]


@pytest.mark.parametrize(("norms", "untouched", "told"), [
    (4, 4, {"evaluation-mode": "error"}),
    (4, 1, {"evaluation-mode": "warning", "vanishing": "error"}),
    (4, 0, {"evaluation-mode": "warning", "vanishing": "error"}),
    (0, 0, {"evaluation-mode": "warning", "vanishing": "error"}),
])  # fmt: skip
def test_norms_that_normalise_nothing_are_the_cause(norms, untouched, told):
    """Most of them; dropout that is switched off, or norms that were trained, make no decay."""
    numbers = {"running statistics": norms, "untouched": untouched}
    evidence = {name: Evidence(n, "modules") for name, n in numbers.items() if n}
    mode = Finding("evaluation-mode", Severity.WARNING, "(root)", "so it is", evidence)
    decay = Finding("vanishing", Severity.ERROR, "", "", verdict=Verdict.VANISHING)
    found = folded([decay, mode])
    assert {f.kind: f.severity for f in found} == told
    assert {f.verdict for f in found if f.severity == "error"} == {Verdict.VANISHING}
    assert folded([mode]) == [mode]
    collapse = Finding("collapse", Severity.ERROR, "", "", verdict=Verdict.DEAD)
    if told == {"evaluation-mode": "error"}:  # a collapse follows from a decay
        assert [f.verdict for f in folded([collapse, decay, mode])] == [Verdict.VANISHING]
        assert [f.verdict for f in folded([collapse, mode])] == [Verdict.DEAD]


@pytest.mark.parametrize(("activation", "lr", "verdict", "error"), [
    (nn.Sigmoid, 0.1, "vanishing", "vanishing"), (nn.ReLU, 1e-9, "stalled", "updates-too-small"),
])  # fmt: skip
def test_small_steps_come_of_the_gradient_or_of_the_rate(activation, lr, verdict, error):
    """Sigmoids pass a quarter of it at most, layer by layer: no rate mends that."""
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(16, 16), activation())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    if activation is nn.ReLU:
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with watch(model, optimizer, every=1) as scope:
        for _ in range(12):
            optimizer.zero_grad()
            inputs, targets = torch.randn(32, 16), torch.randint(4, (32,))
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    diagnosis = diagnose(scope.trace())
    errors = {f.kind for f in diagnosis.findings if f.severity == "error"}
    assert (diagnosis.verdict, error in errors) == (verdict, True), str(diagnosis)
    assert not {"vanishing", "updates-too-small"} <= errors
