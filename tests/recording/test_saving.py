"""watch(save=...): the file is whole at any moment, and never in the way."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning, RecorderError
from gradscope.recording.ration import Ration
from gradscope.recording.saving import LEFT_S
from gradscope.trace import file

KILLS = 20
WAIT_S = 300.0
"""More than any of it takes on a busy machine."""


def train(steps=8, *, each=lambda step, scope: None, **options):
    """A trace and the weights at the end; something is done after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, **({"every": 1} | options)) as scope:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 3)).square().mean()
            loss.backward()
            optimizer.step()
            scope.log(loss=loss)
            each(step, scope)
    return scope.trace(), [p.detach().clone() for p in model.parameters()]


def same(one, two):
    """Whether two traces say the same, but that one may still run."""
    assert one.tensors == two.tensors
    assert one.steps == two.steps
    assert repr(one.structure) == repr(two.structure)  # NaN stands in it
    assert one.logged == two.logged
    assert torch.equal(one.present, two.present)
    assert torch.equal(one.values.nan_to_num(-1), two.values.nan_to_num(-1))
    if one.histograms is not None or two.histograms is not None:
        assert torch.equal(one.histograms, two.histograms)
    return True


def names(folder):
    """What is in it."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def always(monkeypatch):
    """After every recorded step, and before the next begins."""
    monkeypatch.setattr(Ration, "due", lambda self: True)
    monkeypatch.setattr(threading.Thread, "start", lambda self: self.run())
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("options", [{}, {"histograms": True}, {"max_steps": 32, "every": 2}])
def test_the_file_is_the_trace_of_the_steps_so_far(tmp_path, options):
    """After each step, and at the end, bit for bit what the scope holds."""
    path = tmp_path / "made" / "run.parquet"
    read = []

    def look(step, scope):
        found = gradscope.Trace.load(path)
        assert found.metadata["running"] is True
        assert found.steps == scope.trace().steps
        read.append(len(found.steps))

    trace, _ = train(80 if "max_steps" in options else 6, each=look, save=path, **options)
    assert len(read) >= 6
    found = gradscope.Trace.load(path)
    assert same(found, trace)
    assert "running" not in found.metadata
    assert found.metadata == trace.metadata
    assert names(path.parent) == ["run.parquet"]


def test_it_is_written_at_the_first_step_and_at_the_end(tmp_path):
    """However short the training is."""
    path, first = tmp_path / "run.parquet", []

    def look(step, scope):
        if step == 0:
            scope._live._saving._writer.join()
            first.append(gradscope.Trace.load(path))

    trace, _ = train(5, each=look, save=str(path))
    assert [step.step for step in first[0].steps] == [0]
    assert same(gradscope.Trace.load(path), trace)


def test_the_table_is_what_pandas_has(tmp_path):
    """Column by column, read by somebody else."""
    trace, _ = train(4, save=tmp_path / "run.parquet", histograms=True)
    found, expected = pd.read_parquet(tmp_path / "run.parquet"), trace.to_pandas()
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        one, two = list(found[name]), list(expected[name])
        if name == "log2_histogram":
            assert [list(counts) for counts in one] == [list(counts) for counts in two]
        else:
            pd.testing.assert_series_equal(pd.Series(one), pd.Series(two))


@pytest.mark.usefixtures("always")
def test_the_training_and_its_trace_are_the_same(tmp_path):
    """Bit for bit."""
    (one, a), (two, b) = train(6), train(6, save=tmp_path / "run.parquet")
    assert all(map(torch.equal, a, b))
    assert same(one, two)


def test_a_slow_disk_does_not_hold_up_the_loop(tmp_path, monkeypatch):
    """Steps end while the first write hangs; the end waits for it."""
    gate, steps, write = threading.Event(), [], file.write

    def slow(trace, place, temporary):
        assert not trace.steps or gate.wait(WAIT_S)  # before the training it is tried once
        write(trace, place, temporary)

    monkeypatch.setattr(file, "write", slow)
    monkeypatch.setattr(Ration, "due", lambda self: True)

    def count(step, scope):
        steps.append(step)
        if step == 7:
            assert not (tmp_path / "run.parquet").exists()
            gate.set()

    trace, _ = train(8, each=count, save=tmp_path / "run.parquet")
    assert steps == list(range(8))
    assert same(gradscope.Trace.load(tmp_path / "run.parquet"), trace)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), ValueError("a bug")])
def test_what_cannot_be_written_is_one_warning(tmp_path, monkeypatch, fault):
    """The recording goes on, what was there stays, and the end is written when there is room."""
    monkeypatch.setenv("GRADSCOPE_STRICT", "0")
    path, write = tmp_path / "run.parquet", file.write
    broken = [False]

    def full(trace, place, temporary):
        if broken[0]:
            temporary.write_bytes(b"half")
            temporary.unlink()
            raise fault
        write(trace, place, temporary)

    def look(step, scope):
        broken[0] = 1 <= step < 5
        assert gradscope.Trace.load(path).steps

    monkeypatch.setattr(file, "write", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace, _ = train(8, each=look, save=path)
    assert [w.category for w in caught] == [GradscopeWarning]
    told = getattr(fault, "strerror", None) or str(fault)
    assert f"run.parquet could not be written ({told})" in str(caught[0].message)
    assert not trace.metadata["blind_spots"]
    assert len(trace.steps) == 8
    assert same(gradscope.Trace.load(path), trace)


@pytest.mark.usefixtures("always")
def test_a_folder_that_is_gone_is_one_warning(tmp_path):
    """It is not made again; the recording goes on to its end."""
    path = tmp_path / "runs" / "run.parquet"

    def look(step, scope):
        if step == 3:
            path.unlink()
            path.parent.rmdir()

    with pytest.warns(GradscopeWarning, match=r"could not be written \(.*No such file") as caught:
        trace, _ = train(6, each=look, save=path)
    assert len(caught) == 1
    assert len(trace.steps) == 6
    assert not path.parent.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_says_so(tmp_path):
    """As the system words it."""
    path = tmp_path / "run.parquet"
    temporary = tmp_path / f".run.parquet.{os.getpid()}.tmp"

    def look(step, scope):
        if step == 0:
            scope._live._saving._writer.join()
            temporary.symlink_to("/dev/full")

    with pytest.warns(GradscopeWarning, match="could not be written .*No space left on device"):
        train(3, each=look, save=path)
    assert [step.step for step in gradscope.Trace.load(path).steps] == [0]
    assert names(tmp_path) == ["run.parquet"]


@pytest.mark.parametrize(
    ("place", "reason"), [("", "it is no file"), ("file/run.parquet", "Not a directory|exists")]
)
def test_a_path_that_cannot_be_is_refused_at_the_beginning(tmp_path, place, reason):
    """In one line that says why."""
    (tmp_path / "file").touch()
    model = nn.Linear(2, 1)
    with pytest.raises(RecorderError, match=rf"cannot be written \(.*({reason})") as caught:
        gradscope.watch(model, save=tmp_path / place)
    assert "\n" not in str(caught.value)
    gradscope.watch(model).close()


def test_what_is_no_path_is_refused():
    """In one line."""
    with pytest.raises(RecorderError, match="save must be the path of a file, got True"):
        gradscope.watch(nn.Linear(2, 1), save=True)


def test_what_a_killed_training_left_is_cleared_away(tmp_path):
    """Its temporary file, when nobody can be writing it any more."""
    old, young = tmp_path / ".run.parquet.1.tmp", tmp_path / ".run.parquet.2.tmp"
    for left in (old, young):
        left.write_bytes(b"half")
    then = time.time() - LEFT_S - 1
    os.utime(old, (then, then))
    train(2, save=tmp_path / "run.parquet")
    assert names(tmp_path) == [young.name, "run.parquet"]


def test_a_process_without_threads_writes_all_the_same(tmp_path, monkeypatch):
    """In the loop's own."""

    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    read = []
    trace, _ = train(
        2,
        each=lambda step, scope: read.append(gradscope.Trace.load(tmp_path / "run.parquet")),
        save=tmp_path / "run.parquet",
    )
    assert [step.step for step in read[0].steps] == [0]
    assert same(gradscope.Trace.load(tmp_path / "run.parquet"), trace)


KILLED = """
import os, sys
import torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from gradscope.recording import ration
from gradscope.trace import file
from tests.recording import test_saving

ration.SHARE = 0.5

write = file.write

def told(trace, path, temporary):
    last = trace.steps[-1].step if trace.steps else -1
    os.write(1, b"begins %d\\n" % last)
    write(trace, path, temporary)
    os.write(1, b"written %d\\n" % last)

file.write = told
test_saving.train(10**9, save=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes are killed")
def test_a_training_that_is_killed_loses_at_most_one_write(tmp_path, monkeypatch):
    """At twenty random moments; the file has what was written last, as a training has it."""
    chance, path, lasts = random.Random(0), tmp_path / "run.parquet", []
    for _ in range(KILLS):
        path.unlink(missing_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED.format(root=root), str(path)],
            stdout=subprocess.PIPE,
            bufsize=0,  # what is read ahead would be lost to communicate()
        )
        while process.stdout.readline() != b"written 0\n":  # the first step, at once
            assert process.poll() is None
        time.sleep(chance.uniform(0, 1.0))
        process.kill()
        events = [line.split() for line in process.communicate(timeout=WAIT_S)[0].splitlines()]
        begun = [int(step) for what, step in events if what == b"begins"]
        written = [int(step) for what, step in events if what == b"written"]
        found = gradscope.Trace.load(path)
        lasts.append(found.steps[-1].step)
        assert found.metadata["running"] is True
        assert lasts[-1] >= max(written, default=0)
        assert lasts[-1] in {0, *begun, *written}
        assert len(begun) - len(written) in {0, 1}
    assert len(set(lasts)) > KILLS // 2, "too few kills came while there was something to lose"
    whole, _ = train(lasts[-1] + 1)  # the last of them, again and to that step
    assert [s for s in whole.steps if s in found.steps] == list(found.steps)
