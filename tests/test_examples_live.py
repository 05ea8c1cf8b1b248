"""What each log wrote of the live example, read back from its own files, is what it was told."""

from __future__ import annotations

import importlib.util
import json
import re
import sqlite3
import struct
import sys
from collections import defaultdict

import pytest
import torch
from as_user import ROOT, example

BLOCK, HEADER = 32768, 7
"""Of the files of Weights & Biases, which are logs of LevelDB."""


@pytest.fixture(scope="module")
def told():
    """Name -> (step, value), as a function of ours is told in the same training."""
    sys.path.insert(0, str(ROOT))
    from examples.live import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    series = defaultdict(list)
    train(lambda numbers, step: [series[n].append((step, v)) for n, v in numbers.items()])
    torch.set_num_threads(threads)
    sys.path.remove(str(ROOT))
    return dict(series)


def run(log, folder):
    """The example, as a user starts it in a folder of his own."""
    done = example(folder, "live.py", log)
    assert "verdict: healthy" in done.stdout
    return folder / "runs" / "live", done.stdout + done.stderr


def of_wandb(folder):
    """The history in the one file that `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2 as proto

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = defaultdict(list)
    for raw in records(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(raw)
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in items.items():
            if name.startswith("gradscope/"):
                found[name].append((items["_step"], value))
    return found


def records(raw):
    """The records of a log of LevelDB, whose first seven bytes are the version of W&B."""
    at, whole = HEADER, b""
    while at + HEADER <= len(raw):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + HEADER])
        whole += raw[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in {1, 4}:  # whole, or its last piece
            yield whole
            whole = b""


def of_mlflow(folder):
    """Each metric is a file: time, value, step."""
    found = {}
    for path in folder.glob("*/*/metrics/gradscope/**/*"):
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines()]
            name = path.relative_to(next(p for p in path.parents if p.name == "metrics"))
            found[name.as_posix()] = [(int(step), float(value)) for _, value, step in lines]
    return found


def of_trackio(folder):
    """Its data base on this machine."""
    found = defaultdict(list)
    with sqlite3.connect(folder / "gradscope.db") as base:
        for step, raw in base.execute("select step, metrics from metrics order by id"):
            for name, value in json.loads(raw).items():
                if name.startswith("gradscope/"):
                    found[name].append((step, value))
    base.close()
    return found


def of_tensorboard(folder):
    """Its event file, in single precision."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the libraries
@pytest.mark.parametrize(
    ("log", "read"),
    [
        ("wandb", of_wandb),
        ("mlflow", of_mlflow),
        ("trackio", of_trackio),
        ("tensorboard", of_tensorboard),
    ],
)
def test_a_log_holds_what_it_was_told(log, read, told, tmp_path):
    """Every name, at every step, to single precision; nothing was complained of."""
    if importlib.util.find_spec(log) is None:
        pytest.skip(f"pip install {log}")
    folder, said = run(log, tmp_path)
    assert "is called no more" not in said
    found = read(folder)
    assert set(found) == set(told)
    for name, series in told.items():
        assert [step for step, _ in found[name]] == [step for step, _ in series]
        values = [value for _, value in found[name]]
        assert values == pytest.approx([value for _, value in series], rel=1e-6)


@pytest.mark.slow
def test_swanlab_runs(tmp_path):
    """Its file has a form of its own; it is there, and nothing was complained of."""
    if importlib.util.find_spec("swanlab") is None:
        pytest.skip("pip install swanlab")
    folder, said = run("swanlab", tmp_path)
    assert "is called no more" not in said
    (path,) = folder.glob("run-*/run-*.swanlab")
    assert re.search(rb"gradscope/total/grad_norm", path.read_bytes())


def test_the_terminal_is_told_the_same(told, tmp_path):
    """Without any library."""
    _, said = run("terminal", tmp_path)
    first = said.splitlines()[0]
    assert first.startswith("0 {")
    expected = dict(told["gradscope/total/grad_norm"])[0]
    assert f"'gradscope/total/grad_norm': {expected}" in first
