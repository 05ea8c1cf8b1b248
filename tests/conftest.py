"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch
import yaml

from gradscope.ablation.grid import Grid
from gradscope.engines.placement import cores

# No test is told by how long it took.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors, as do their children
    share = max(1, cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(share)
    torch.set_num_threads(share)

COCO = Path(
    os.environ.get(
        "GRADSCOPE_COCO", Path(__file__).resolve().parents[2] / "shared" / "data" / "coco5"
    )
)


os.environ["GRADSCOPE_STRICT"] = (
    "1"  # a fault of the recorder fails the test, also in child processes
)


@pytest.fixture(autouse=True)
def _nothing_left_attached():
    """No test may leave a global hook behind, nor change the random state of the next."""
    torch.manual_seed(0)
    yield
    from torch.nn.modules import module

    assert not module._global_forward_hooks, "a scope was left open"


@pytest.fixture(scope="session")
def coco() -> Path:
    """The folder of real COCO images, where there is one."""
    if not (COCO / "annotations").is_dir():
        pytest.skip(f"no COCO folder at {COCO.name}; set GRADSCOPE_COCO to one")
    return COCO


HERE = Path(__file__).parent
MODULES = ("tiny_functions", "tiny_nets", "tiny_work")

GRID = {
    "name": "tiny",
    "model": {"name": "tiny_nets:net"},
    "data": {"source": "tiny_nets:images", "size": 8},
    "train": {"batch_size": 4, "epochs": 2},
    "matrix": {"lr": [1e-2, 1e-3], "width": [2, 4]},
}


def interruptible():
    """For `preexec_fn`: what a shell runs in the background ignores Ctrl-C, as do its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The current folder is a fresh one that holds the factories.

    `.grid(**keys)` loads a grid of small networks, `.grid_of(keys)` any.
    """
    for name in MODULES:
        shutil.copy(HERE / f"{name}.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    path = tmp_path / "tiny.yaml"

    def grid_of(keys, overrides=()):
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return Grid.load(path, overrides)

    def grid(overrides=(), **keys):
        return grid_of(GRID | keys, overrides)

    grid()
    yield SimpleNamespace(
        interruptible=interruptible, folder=tmp_path, path=path, grid=grid, grid_of=grid_of
    )
    for name in MODULES:
        sys.modules.pop(name, None)
