"""On a GPU: cells are placed on it, share it, and are tried alone where it had no room."""

import textwrap

import pytest
import torch

from gradscope.ablation import run_grid
from gradscope.ablation.choice import choose
from gradscope.engines.placement import devices

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand"),
]

GREEDY = """
import time
import torch

def train(run):
    free, total = torch.cuda.mem_get_info()
    size = int(run.config.train.args["share"] * total)
    held = torch.empty(size, dtype=torch.uint8, device="cuda")
    time.sleep(3)
    run.log(0, loss=torch.zeros((), device="cuda"), devices=torch.cuda.device_count())
    del held
"""


@pytest.fixture
def greedy(tiny, monkeypatch):
    """Cells that take a share of the GPU's memory for a while, two at a time on the first one."""
    (tiny.folder / "greedy.py").write_text(textwrap.dedent(GREEDY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices()[0])

    def grid(shares):
        return tiny.grid_of(
            {
                "name": "greedy",
                "train": {"function": "greedy:train", "args": {"share": 0.1}},
                "resources": {"cpus": 1, "gpus": 0.5},
                "matrix": {"share": shares},
            }
        )

    return grid


def test_cells_without_room_beside_each_other_are_done_one_by_one(greedy):
    """Each takes six tenths of the memory; one takes more than there is, and fails."""
    study = run_grid(greedy([0.6, 0.61, 1.5]), "runs")
    assert [r.status for r in study.results] == ["done", "done", "failed"]
    assert "out of memory" in study.results[2].error
    assert [r.history.last("devices") for r in study.results[:2]] == [1, 1]


def test_the_built_in_loop_trains_on_the_gpu_and_auto_times_it(tiny, monkeypatch):
    """One, two and four cells at a time, both precisions; whatever is chosen is trained so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices()[0])
    grid = tiny.grid(
        train={"batch_size": 4, "epochs": 1, "precision": "auto"}, resources={"cpus": "auto"}
    )
    chosen = choose(grid, None, lambda *_: None)
    assert chosen.precision in ("fp32", "bf16")
    assert chosen.gpus in (1, 0.5, 0.25)
    study = run_grid(chosen.applied(grid), "runs")
    assert [r.status for r in study.results] == ["done"] * 4
    assert {r.environment["device"] for r in study.results} == {"cuda"}
