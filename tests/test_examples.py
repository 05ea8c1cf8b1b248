"""The examples run, and their grids show what they say they show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gradscope.ablation.grid import Grid
from gradscope.ablation.training import train_cell

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """The grids are run from the folder of the project, here with one thread."""
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cell_of(name, *overrides, **factors):
    """The first cell of a grid with these factors."""
    grid = Grid.load(ROOT / "ablations" / f"{name}.yaml", overrides)
    return next(c for c in grid.cells() if factors.items() <= c.factors.items()), grid


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("init", ["gpt", "xavier"])
def test_the_transformer_begins_as_a_guess(norm, init):
    """Before it learned anything its loss is that of equal chances, and it is watched."""
    cell, grid = cell_of("gpt", "train.args.steps=2", norm=norm, init=init)
    result, trace = train_cell(cell, objectives=grid.objectives)
    text = "\n".join((ROOT / name).read_text() for name in cell.config.train.args["text"])
    assert result.history.step_loss[0] == pytest.approx(math.log(len(set(text))), abs=0.7)
    assert result.history.last("perplexity") > 1
    assert {t.kind for t in trace.tensors} >= {"weight", "activation_grad"}
    assert set(result.origin.files) >= {"examples/gpt.py", "README.md"}


@pytest.mark.slow
def test_a_post_norm_transformer_needs_a_warm_up():
    """At depth 12 without one it learns no more than how often each character occurs."""
    losses = {}
    for norm, warmup in (("post", 0), ("post", 100), ("pre", 0)):
        cell, _ = cell_of("gpt", norm=norm, warmup=warmup, init="gpt", depth=12)
        steps = train_cell(cell)[0].history.step_loss
        losses[norm, warmup] = sum(steps[-20:]) / 20
    text = "\n".join((ROOT / n).read_text() for n in cell.config.train.args["text"])
    shares = [text.count(character) / len(text) for character in set(text)]
    entropy = -sum(share * math.log(share) for share in shares)
    assert losses["post", 0] > entropy - 0.2
    assert losses["post", 100] < entropy - 0.3
    assert losses["pre", 0] < min(entropy, losses["post", 0]) - 0.1


def test_the_perceptrons_learn_digits():
    """Two layers of ReLU are right on most of the digits that they were not trained on."""
    pytest.importorskip("sklearn", reason="pip install 'gradscope-torch[examples]'")
    cell, grid = cell_of("mlp", activation="relu", norm=False, depth=2)
    result, _ = train_cell(cell, objectives=grid.objectives)
    assert result.status == "done"
    assert result.history.last("accuracy") > 0.9


@pytest.mark.slow
def test_the_gallery_shows_what_it_says():
    """Each network ails from what it was built to ail from; batch norm by the factor of theory."""
    from examples.gallery import PATIENTS, record
    from gradscope.diagnosis import diagnose, gradient_flow

    traces = {patient.name: record(patient) for patient in PATIENTS}
    verdicts = {name: diagnose(trace).verdict.value for name, trace in traces.items()}
    assert verdicts == {
        "dead": "dead",
        "exploding-norm": "exploding",
        "transformer": "vanishing",
        "hw5net": "healthy",
        "net3": "vanishing",
    }
    per_layer = 0.5 * math.log10(math.pi / (math.pi - 1))  # Yang et al. 1902.08129
    assert gradient_flow(traces["exploding-norm"]).slope == pytest.approx(per_layer, rel=0.05)
