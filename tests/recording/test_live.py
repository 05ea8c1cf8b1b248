"""What watch(log=...) tells: the numbers of the trace, under stable names, never in the way."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning, RecorderError
from gradscope.recording import kernels
from gradscope.trace.vocabulary import place_of


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _both_meters(request, monkeypatch):
    """Everything holds with the compiled kernels and with what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)


class Residual(nn.Module):
    """A block with two layers and a way around them."""

    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x):
        """Around and through."""
        return x + self.two(self.act(self.one(x)))


def network():
    """A stem, two blocks, a head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), Residual(), Residual(), nn.Linear(6, 1))


VERDICT = "gradscope/total/verdict"


def of_steps(log):
    """The log without the verdict of the end."""
    return lambda numbers, step: None if set(numbers) == {VERDICT} else log(numbers, step)


def train(model, steps=6, **options):
    """Its trace, and the state that the training ended in; a log is told of steps alone."""
    if callable(options.get("log")):
        options["log"] = of_steps(options["log"])
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, **options) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
    return scope.trace(), [p.detach().clone() for p in model.parameters()]


def test_numbers_are_those_of_the_trace():
    """Norms add up as squares over the parameters of a block; told in the very step."""
    model, told = network(), {}
    seen = []

    def log(numbers, step):
        seen.append(sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5)
        told[step] = numbers

    trace, _ = train(model, 6, every=2, log=log)
    assert list(told) == [0, 2, 4] == [step.step for step in trace.steps]
    blocks = trace.structure.blocks
    assert len(blocks) >= 3
    place = {name: place_of(name) for name in ("norm", "rms", "update_ratio", "weight_norm")}
    for row, (numbers, total) in enumerate(zip(told.values(), seen, strict=True)):
        assert numbers["gradscope/total/grad_norm"] == pytest.approx(total, rel=1e-5)
        found = 0
        for block in blocks:
            weights = [
                trace.values[row, i]
                for i, t in enumerate(trace.tensors)
                if t.kind == "weight" and t.module in block.modules
            ]
            found += len(weights)
            norms = [w[place["norm"]].item() for w in weights]
            assert numbers[f"gradscope/grad_norm/{block.name}"] == pytest.approx(math.hypot(*norms))
            known = [w for w in weights if not w[place["update_ratio"]].isnan()]
            moves = [(w[place["update_ratio"]] * w[place["weight_norm"]]).item() for w in known]
            sizes = [w[place["weight_norm"]].item() for w in known]
            assert numbers[f"gradscope/update_ratio/{block.name}"] == pytest.approx(
                math.hypot(*moves) / math.hypot(*sizes), rel=1e-5
            )
            leaving = [
                trace.values[row, i, place["rms"]].item()
                for i, t in enumerate(trace.tensors)
                if (t.kind, t.module, t.call) == ("activation", block.output, block.call)
            ]
            assert [numbers[f"gradscope/activation_rms/{block.name}"]] == leaving
        assert found == len(list(model.parameters()))


def test_each_parameter_and_output_where_asked():
    """Bit for bit what the table holds."""
    told = {}
    trace, _ = train(
        network(), 3, every=1, log=lambda n, s: told.__setitem__(s, n), detail="parameters"
    )
    for row, numbers in enumerate(told.values()):
        for i, tensor in enumerate(trace.tensors):
            if tensor.kind == "activation_grad":
                continue
            name = "root" if tensor.name == "(root)" else tensor.name
            what, statistic = (
                ("grad_norm", "norm") if tensor.kind == "weight" else ("activation_rms", "rms")
            )
            value = trace.values[row, i, place_of(statistic)].item()
            assert numbers[f"gradscope/{what}/{name}"] == value


def test_dead_units_are_told_by_block():
    """A layer whose bias shuts every unit."""
    model = network()
    with torch.no_grad():
        model[1].one.bias.fill_(-100.0)
    told = []
    train(model, 2, every=1, log=lambda numbers, step: told.append(numbers))
    shares = {
        name: value for name, value in told[-1].items() if name.startswith("gradscope/dead_frac")
    }
    assert max(shares.values()) == 1.0
    assert min(shares.values()) < 1.0
    assert [name.rpartition("/")[2][0] for name, value in shares.items() if value == 1.0] == ["1"]


@pytest.mark.parametrize("options", [{}, {"activations": False}, {"norms_only": True}])
def test_names_are_the_same_at_every_step_and_suit_every_log(options):
    """Letters, digits and what MLflow takes; floats alone; no name is a folder of another."""
    told = []
    train(network(), 5, every=1, log=lambda numbers, step: told.append(numbers), **options)
    assert len(told) == 5
    assert len({tuple(numbers) for numbers in told}) == 1
    for name, value in told[0].items():
        assert re.fullmatch(r"gradscope/\w+/[\w.:\- ]+", name)
        assert type(value) is float
        assert not any(other.startswith(f"{name}/") for other in told[0])
    assert "gradscope/total/grad_norm" in told[0]


def test_the_training_is_bit_for_bit_the_same():
    """With a log and without."""
    bare, logged = network(), network()
    (one, a), (two, b) = train(bare, every=1), train(logged, every=1, log=lambda n, s: None)
    assert all(map(torch.equal, a, b))
    assert torch.equal(one.values.nan_to_num(-1), two.values.nan_to_num(-1))


def test_a_sink_that_raises_is_warned_about_once_and_left_out():
    """The recording goes on."""
    calls = []

    def log(numbers, step):
        calls.append(step)
        raise OSError("no space left")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace, _ = train(network(), 4, every=1, log=log)
    assert calls == [0]
    assert [w.category for w in caught] == [GradscopeWarning]
    assert "log raised and is called no more: OSError: no space left" in str(caught[0].message)
    assert len(trace.steps) == 4


@pytest.mark.parametrize(
    ("options", "line"),
    [({"log": "wandb"}, "log must be a function"), ({"detail": "block"}, "did you mean 'blocks'")],
)
def test_what_makes_no_sense_is_refused_at_the_beginning(options, line):
    """In one line."""
    with pytest.raises(RecorderError, match=line):
        gradscope.watch(network(), **options)


def test_a_copy_that_is_late_is_told_later_and_in_order(monkeypatch):
    """Nothing waits for it within the loop; the end of the recording does."""
    from gradscope.recording import buffer

    arrived, told = [], []

    class Late(buffer.Copy):
        def has_arrived(self):
            return bool(arrived)

    monkeypatch.setattr(buffer, "Copy", Late)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = of_steps(lambda n, s: told.append(s))
    with gradscope.watch(model, optimizer, every=2, log=log) as scope:
        for i in range(5):
            if i == 3:
                arrived.append(True)
            model(torch.randn(2, 3)).sum().backward()
            optimizer.step()
            assert told == ([] if i < 3 else [0, 2] if i == 3 else [0, 2, 4])
        arrived.clear()
        for _ in range(2):
            model(torch.randn(2, 3)).sum().backward()
            optimizer.step()
    assert told == [0, 2, 4, 6]
    assert len(scope.trace().steps) == 4


def test_a_short_training_is_told_its_verdict_at_the_end():
    """At the number of its steps, which no log has passed; nothing where no step was recorded."""
    model, told = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=2, log=lambda n, s: told.append((n, s))) as scope:
        for _ in range(4):
            model(torch.randn(2, 3)).sum().backward()
            optimizer.step()
    assert [step for _, step in told] == [0, 2, 4]
    verdict = gradscope.diagnose(scope.trace()).verdict
    codes = ["healthy", "inconclusive", "vanishing", "stalled", "exploding", "dead"]
    assert told[-1][0] == {VERDICT: float(codes.index(verdict.value))}
    with gradscope.watch(network(), log=lambda n, s: told.append((n, s))):
        pass
    assert len(told) == 3, "of a training without a step there is nothing to say"
