"""Training functions of one's own: what they log is kept, and what they do wrong is one line."""

from __future__ import annotations

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
import typer.testing

import gradscope
from gradscope.ablation import run_grid
from gradscope.ablation.handle import Run
from gradscope.ablation.training import train_cell
from gradscope.cli.app import app
from gradscope.engines.local import Local
from gradscope.engines.task import InProcess
from gradscope.errors import ModelError
from gradscope.study import tables
from gradscope.study.effects import effects

OWN = {
    "function": "tiny_functions:train",
    "args": {"width": 4, "lr": 0.05, "steps": 6, "trouble": ""},
}


@pytest.fixture
def own(tiny):
    """Loads a grid that a function of one's own trains."""

    def grid(*, objectives=None, **matrix):
        keys = {"name": "own", "train": OWN, "matrix": matrix, "record": {"every": 1}}
        if objectives:
            keys["objectives"] = objectives
        return tiny.grid_of(keys)

    return grid


def one(own, **matrix):
    """The result and the trace of the first cell."""
    return train_cell(own(**matrix).cells()[0])


def plain_loop(width=4, lr=0.05, steps=6, seed=0):
    """The same training without gradscope."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_function_trains_as_if_alone_and_what_it_logs_is_kept(own):
    """Losses as of a plain loop, bit for bit; every metric with its steps; a trace of each step."""
    result, trace = one(own)
    losses = plain_loop()
    assert result.status == "done"
    assert result.history.step_loss == tuple(losses)
    assert result.history.logged["loss"] == tuple(enumerate(losses))
    assert result.history.logged["error"] == ((5, losses[-1] ** 0.5),)
    assert result.history.epochs == result.classes == ()
    assert len(trace.steps) == 6
    assert result.n_parameters == 3 * 4 + 4 + 4 + 1
    assert set(result.origin.files) == {"tiny_functions.py"}
    assert result.origin.trainer == 0
    assert gradscope.Run is Run


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("logs nothing", r"tiny_functions:train logged nothing; call run.log\(step, loss=...\)"),
        ("text", r"run.log\(0, stage=...\): it is of type str; log one number"),
        (
            "vector",
            r"run.log\(0, errors=...\): it is a Tensor of shape \(4,\), .* on cpu; log one number",
        ),
        ("device", r"run.log\(0, loss=...\): it is .* on meta; log one number"),
        ("complex", r"run.log\(0, phase=...\): it is of type complex; log one number"),
        ("no step", r"run.log\(1.5, ...\): the step is an integer from 0"),
        ("watches twice", r"run.watch: a cell has one trace"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(own, trouble, says):
    """What, where, and what would be right; no hook is left behind."""
    with pytest.raises(ModelError, match=says) as caught:
        one(own, trouble=[trouble])
    assert "\n" not in str(caught.value)


def test_an_objective_that_was_never_logged_is_named(own):
    """With what was logged instead."""
    cell = own(trouble=["no objective"]).cells()[0]
    with pytest.raises(ModelError, match=r"never logged the objective 'error'; logged: loss"):
        train_cell(cell, objectives={"error": "min"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_device_are_read_without_waiting_in_the_step(own):
    """Logged under a debug mode that forbids to wait; the numbers arrive all the same."""
    run = Run(own().cells()[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(10):
            run.log(step, loss=torch.full((), float(step), device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.close()
    assert run.measured.logged["loss"] == [(step, float(step)) for step in range(10)]


def test_a_loss_that_runs_away_ends_the_cell_as_diverged(own):
    """`run.stop` is true from then on, the first bad step is named, the trace is kept."""
    result, trace = one(own, lr=[1e30], steps=[500])
    losses = [value for _, value in result.history.logged["loss"]]
    first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    assert result.status == "diverged"
    assert result.error == f"loss became {losses[first]} at step {first}"
    assert len(losses) == first + 1
    assert len(trace.steps) == len(losses)


def test_the_outcomes_are_those_of_the_grid(own):
    """Errors are results with their traceback; what is returned is a note; nothing stops others."""
    grid = own(trouble=["", "raises", "returns", "unwatched"])
    study = run_grid(grid, "runs", engine=InProcess())
    fine, raised, returned, unwatched = study.results
    assert [r.status for r in study.results] == ["done", "failed", "done", "done"]
    assert raised.error == "KeyError: 'no such thing'"
    assert "tiny_functions.py" in raised.traceback
    assert returned.notes == (
        "tiny_functions:train returned a dict, which is dropped; log it, or write it to run.folder",
    )
    assert fine.notes == ()
    assert (unwatched.trace_path, unwatched.is_traced) == (None, False)
    assert unwatched.history.step_loss == fine.history.step_loss


def test_a_killed_cell_finds_its_checkpoint_when_it_is_tried_again(own, tiny):
    """It goes on at step 4, ends with the loss of an undisturbed run, and its files are kept."""
    grid = own(trouble=["saves"])
    first = run_grid(grid, "runs", engine=Local(1))
    assert [r.status for r in first.results] == ["failed"]
    result = run_grid(grid, "runs", engine=Local(1)).results[0]
    assert result.status == "done"
    assert result.history.last("seen") == 4
    losses = plain_loop()
    assert result.history.logged["loss"] == tuple(enumerate(losses))[4:]
    folder = tiny.folder / "runs"
    assert [p.name for p in (folder / result.id / "files").iterdir()] == ["last.pt"]
    assert not list(folder.glob(".work-*"))


@pytest.mark.slow
def test_checkpoints_of_other_code_are_not_taken_up(own, tiny):
    """The function changed after the kill: the cell begins anew."""
    grid = own(trouble=["saves"])
    run_grid(grid, "runs", engine=Local(1))
    path = tiny.folder / "tiny_functions.py"
    path.write_text(path.read_text().replace("first == 0", "first == -1"))
    result = run_grid(grid, "runs", engine=Local(1)).results[0]
    assert (result.status, result.history.last("seen")) == ("done", 0)


def test_generators_are_seeded_for_the_function_and_given_back(own, monkeypatch):
    """torch, random and NumPy draw the same in each training, and go on as before outside."""
    drawn = []

    def train(run):
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
        run.log(0, loss=1)

    monkeypatch.setattr("tiny_functions.train", train)
    cell = own().cells()[0]

    def seed():
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed()
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    seed()
    for _ in range(2):
        train_cell(cell)
    assert drawn[0] == drawn[1]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_effects_are_of_the_objectives(own):
    """By name, with their direction: a small positive one by decades, as arithmetic says."""
    grid = own(objectives={"error": "min", "seen": "max"}, lr=[0.05, 0.01], width=[2, 4])
    study = run_grid(grid, "runs", engine=InProcess())
    assert study.objectives == {"error": "min", "seen": "max"}
    found = {(e.metric, e.factor, e.by): e for e in effects(tables.read(study))}
    assert {metric for metric, _, _ in found} >= {"logged.error, log10", "logged.seen"}
    assert not {metric for metric, _, _ in found} & {"loss", "accuracy"}
    frame = pd.DataFrame(
        [r.factors | {"y": math.log10(r.history.last("error"))} for r in study.results]
    )
    means = frame.groupby("lr")["y"].mean()
    effect = found["logged.error, log10", "lr", ""]
    assert effect.level == "0.01"
    assert effect.estimate == pytest.approx(means[0.01] - means[0.05])


def test_the_command_shows_what_was_logged(own, tiny):
    """Columns of the objectives, sentences on them, and a page; no confusion matrix on it."""
    own(objectives={"error": "min"}, lr=[0.05, 0.01])
    ended = typer.testing.CliRunner().invoke(app, ["run-grid", str(tiny.path), "--jobs", "1"])
    assert ended.exit_code == 0, ended.output
    header = next(line for line in ended.stdout.splitlines() if "status" in line)
    assert "error" in header
    assert "accuracy" not in header
    assert "error, log10: the largest differences are lr 0.01 against 0.05" in ended.stdout
    assert (tiny.folder / "runs" / "own.tables" / "logged.csv").is_file()
    assert not (tiny.folder / "runs" / "own.tables" / "confusion.csv").exists()
