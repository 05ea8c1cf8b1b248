"""``gradscope follow``: what it shows of a training that runs, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import zoo
from rich.console import Console
from torch import nn

import gradscope
from gradscope.cli import follow as command
from gradscope.cli.app import main
from gradscope.cli.follow_view import Followed, rows
from gradscope.diagnosis import diagnose
from gradscope.trace.table import Trace

WAIT_S = 120.0
"""More than any of it takes on a busy machine."""


@pytest.fixture
def run(capsys, monkeypatch):
    """The command as the shell runs it, into a pipe of 80 columns: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["gradscope", "follow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def traces():
    """A healthy and a sick one."""
    return {name: zoo.watch_member(zoo.draw(name, 0)) for name in ("kaiming_mlp", "deep_sigmoid")}


def running(trace):
    """As a file holds it before the training ends."""
    return dataclasses.replace(trace, metadata={**trace.metadata, "running": True})


@pytest.mark.parametrize(("name", "code"), [("kaiming_mlp", 0), ("deep_sigmoid", 1)])
def test_a_closed_run_is_shown_and_judged_as_diagnose_does(run, traces, tmp_path, name, code):
    """The verdict, every block of the flow, and each warning and error with its remedy."""
    path = traces[name].save(tmp_path / "run.parquet")
    for arguments in ((path,), (path, "--once")):
        told = run(*arguments)
        assert (told[0], told[2]) == (code, "")
        out, diagnosis = told[1], diagnose(traces[name])
        assert f"verdict: {diagnosis.verdict.value}" in out
        assert "closed" in out
        assert max(map(len, out.splitlines())) <= 80
        words = " ".join(out.split())
        for finding in diagnosis.findings:
            if finding.severity != "info":
                assert finding.kind in words
                assert " ".join(finding.remedy.split()) in words
        for row in rows(traces[name]):
            assert row.name in out


def test_once_shows_a_run_that_goes_on(run, traces, tmp_path):
    """And how old the file is."""
    path = running(traces["kaiming_mlp"]).save(tmp_path / "run.parquet")
    then = time.time() - 7200
    os.utime(path, (then, then))
    code, out, _ = run(path, "--once")
    assert code == 0
    assert "running, written 2 h ago" in out
    assert f"step {traces['kaiming_mlp'].steps[-1].step:,}" in out


def test_numbers_are_those_of_the_last_step():
    """Update ratio and rms of each block, from the weights themselves."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, ratios = {}, {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.detach()))
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(16, 3)).square().mean().backward()
            before = {n: [p.detach().clone() for p in m.parameters()] for n, m in
                      model.named_children()}  # fmt: skip
            optimizer.step()
    for name, module in model.named_children():
        moves = [p.detach() - b for p, b in zip(module.parameters(), before[name], strict=True)]
        if moves:
            ratios[name] = (
                torch.cat([m.flatten() for m in moves]).norm()
                / torch.cat([b.flatten() for b in before[name]]).norm()
            ).item()
    trace = scope.trace()
    shown = rows(trace)
    outputs = {block.name: block.output for block in trace.structure.blocks}
    assert len(shown) >= 3
    for row in shown:
        block = next(b for b in trace.structure.blocks if b.name == row.name)
        inside = [name for name in block.modules if name in ratios]
        if len(inside) == 1:
            assert row.update == pytest.approx(ratios[inside[0]], rel=1e-4)
        rms = seen[outputs[row.name]].square().mean().sqrt().item()
        assert row.rms == pytest.approx(rms, rel=1e-5)


def test_without_outputs_the_layers_are_shown():
    """By the gradients of their weights."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1, activations=False) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(16, 3)).square().mean().backward()
            optimizer.step()
    assert [row.name for row in rows(scope.trace())] == ["0", "2"]
    assert all(row.update > 0 for row in rows(scope.trace()))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (140, 50)])
def test_it_fits_the_terminal(traces, tmp_path, width, height):
    """In both directions; of a deep network the middle gives way."""
    path = running(traces["deep_sigmoid"]).save(tmp_path / "run.parquet")
    console = Console(width=width, height=height, file=io.StringIO())
    with console.capture() as captured:
        console.print(Followed.of(path).view(width, height))
    lines = captured.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert (" more" in captured.get()) == (len(rows(traces["deep_sigmoid"])) > height - 12)


def test_an_empty_run_is_shown(run, tmp_path, traces):
    """Nothing was recorded, nothing is claimed."""
    trace = traces["kaiming_mlp"]
    empty = dataclasses.replace(trace, steps=(), values=trace.values[:0], present=trace.present[:0])
    code, out, _ = run(empty.save(tmp_path / "run.parquet"))
    assert code == 1
    assert "no step yet" in out
    assert "verdict: inconclusive" in out


def test_bad_input_is_one_line_and_exit_2(run, tmp_path):
    """A folder, a file of another kind, and a missing one where nothing is waited for."""
    (tmp_path / "x.parquet").write_text("no")
    for arguments in ((tmp_path,), (tmp_path / "x.parquet",), (tmp_path / "gone", "--once")):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("error: ")


def test_it_waits_for_the_file_and_ends_with_the_training(run, traces, tmp_path, monkeypatch):
    """First it is not there, then it runs, then it is closed, as the clock of the test goes on."""
    path, looks = tmp_path / "run.parquet", []
    trace = traces["deep_sigmoid"]

    def go_on(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            running(trace).save(path)
        elif len(looks) == 6:
            trace.save(path)
            os.utime(path, (0, 0))  # another time, however coarse the clock of the disk is
        assert len(looks) < 1000

    monkeypatch.setattr(command.time, "sleep", go_on)
    monkeypatch.setattr(command, "_SHARE", 1e9)
    code, out, err = run(path)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith(f"waiting for {path}: watch(..., save=")
    assert "closed" in out
    assert len(looks) == 6


def test_a_file_that_is_gone_is_shown_as_it_was(run, traces, tmp_path, monkeypatch):
    """Until it comes back."""
    path = running(traces["kaiming_mlp"]).save(tmp_path / "run.parquet")
    looks = []

    def go_on(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            path.unlink()
        elif len(looks) == 3:
            traces["kaiming_mlp"].save(path)
            os.utime(path, (0, 0))

    monkeypatch.setattr(command.time, "sleep", go_on)
    monkeypatch.setattr(command, "_SHARE", 1e9)
    assert run(path)[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_ctrl_c_ends_it_with_130(tmp_path, traces):
    """While it waits, and while it shows."""
    from conftest import interruptible

    path = tmp_path / "run.parquet"
    for ready in ("waiting for", "verdict"):
        process = subprocess.Popen(
            [sys.executable, "-m", "gradscope", "follow", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "80", "TTY_COMPATIBLE": "1"},
            preexec_fn=interruptible,
        )
        timer = threading.Timer(WAIT_S, process.kill)
        timer.start()
        while ready not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
        timer.cancel()
        assert process.returncode == 130, out
        assert "Traceback" not in out
        running(traces["kaiming_mlp"]).save(path)


def test_names_from_outside_are_no_markup(run, traces, tmp_path):
    """A module called as rich's markup is shown as it is called."""
    trace = traces["kaiming_mlp"]
    blocks = tuple(
        dataclasses.replace(block, name=f"[red]{block.name}") for block in trace.structure.blocks
    )
    odd = dataclasses.replace(trace, structure=dataclasses.replace(trace.structure, blocks=blocks))
    _, out, _ = run(odd.save(tmp_path / "[bold]run.parquet"), "--once")
    assert "[bold]run.parquet" in out
    assert all(f"[red]{block.name}" in out for block in trace.structure.blocks[:2])
    assert isinstance(Trace.load(tmp_path / "[bold]run.parquet"), Trace)
