"""Ray on this machine, and a cluster of two nodes of which one dies."""

import importlib
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

import gradscope
from gradscope.ablation import run_grid
from gradscope.ablation.store import Store
from gradscope.engines.local import Local
from gradscope.engines.placement import Resources
from gradscope.engines.ray import Ray
from gradscope.errors import ConfigError

ROOT = Path(gradscope.__file__).parents[1]
"""Other processes run the very package that is tested."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

ray = pytest.importorskip("ray", reason="pip install 'gradscope-torch[ray]'")


@pytest.fixture
def started(tiny, monkeypatch):
    """Ray with two processors, a claimed GPU and the current folder on the import path."""
    monkeypatch.setenv("PYTHONPATH", f"{tiny.folder}{os.pathsep}{ROOT}")
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield importlib.import_module("tiny_work")
    ray.shutdown()


def run(engine, tasks, work):
    """Events, and the last one of each task, of which there is one."""
    events = []
    engine.run(tasks, work.work, events.append)
    last = [event for event in events if event.kind in ("finished", "lost")]
    assert len({event.task for event in last}) == len(last) == len(tasks)
    return events, {event.task: event for event in last}


def test_tasks_end_as_they_do_here(started):
    """Done, raised and killed; threads as asked for; progress is told while they run."""
    work = started
    tasks = [
        work.Job("a", number=3),
        work.Job("bad", "raise"),
        work.Job("killed", "kill"),
        work.Job("w", "where"),
        work.Job("slow", "sleep", 3),
    ]
    events, ended = run(Ray(), tasks, work)
    kinds = {name: event.kind for name, event in ended.items()}
    assert kinds == {
        "a": "finished", "bad": "lost", "killed": "lost", "w": "finished", "slow": "finished",
    }  # fmt: skip
    assert ended["a"].value == 9
    assert ended["bad"].value == "ValueError: no such luck: bad"
    assert ended["killed"].value.startswith("its process or its node died: ")
    assert ended["w"].value[1:] == ("1", 1)
    assert [e.kind for e in events if e.task == "killed"].count("started") == 2
    told = [e.kind for e in events if e.task == "slow"]
    assert told == ["started", "progress", "finished"]


def test_processors_gpus_and_memory_are_asked_for(started):
    """Half a GPU each: both see it; more than any node has is refused at once."""
    work = started
    tasks = [work.Job(f"g{i}", "gpu", 3) for i in (0, 1)]
    events, ended = run(Ray(needs=Resources(gpus=0.5)), tasks, work)
    assert {e.value for e in events if e.kind == "progress"} == {"0"}
    assert {event.kind for event in ended.values()} == {"finished"}
    for needs in (Resources(gpus=2), Resources(cpus=3), Resources(memory_gb=1e6)):
        with pytest.raises(ConfigError, match="no node has room for"):
            Ray(needs=needs).run([work.Job("t")], work.work, print)


def test_results_come_back_where_the_folder_is_not_shared(started, tiny, monkeypatch):
    """The folder that lies at the path has not the mark of the run: the same table all the same."""
    grid = tiny.grid()
    monkeypatch.setattr(Store, "marked", lambda _: nullcontext(".mark-of-another-machine"))
    there = run_grid(grid, "there", engine=Ray())
    here = run_grid(grid, "here", engine=Local(2, Resources(cpus=1)))
    assert [r.status for r in there.results] == ["done"] * 4
    for mine, theirs in zip(here.results, there.results, strict=True):
        assert mine.history.step_loss == theirs.history.step_loss
        assert mine.trace().to_pandas().equals(theirs.trace().to_pandas())


def test_a_node_that_dies_costs_its_cells_one_more_try(tiny, monkeypatch):
    """Two nodes, 24 cells, one node killed in the middle: the table that the local engine gives."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{tiny.folder}{os.pathsep}{ROOT}")
    grid = tiny.grid(
        matrix={"lr": [1e-2, 1e-3], "width": [2, 4], "pause": [0.0, 0.3]}, seeds=[0, 1, 2]
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    ended = []

    class Axe:
        """Kills the second node after a few cells."""

        def preparing(self, *_):
            """Nothing."""

        def planned(self, plan):
            """Nothing."""

        def happened(self, event):
            """Count; a process of the dead node may hold its claim a moment longer."""
            if event.kind != "finished" or event.value.status == "running":
                return
            ended.append(event.task)
            if len(ended) == 6:
                threading.Thread(target=cluster.remove_node, args=(second,)).start()

    try:
        study = run_grid(grid, "ray", engine=Ray(), observe=Axe())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [r.status for r in study.results] == ["done"] * 24
    assert len(ended) == len(set(ended)) == 24
    local = run_grid(grid, "local", engine=Local(2, Resources(cpus=1)))
    for mine, theirs in zip(local.results, study.results, strict=True):
        assert mine.history.step_loss == theirs.history.step_loss
        assert mine.trace().to_pandas().equals(theirs.trace().to_pandas())


def test_what_had_no_room_on_a_shared_gpu_gets_one_of_its_own(started):
    """Once more, with a whole one; what is too large for that is lost."""
    work = started
    engine = Ray(needs=Resources(gpus=0.5))
    asked = [engine._demands(alone=alone)["num_gpus"] for alone in (False, True)]
    assert asked == [0.5, 1]
    tasks = [work.Job("c0", "crowd", 2), work.Job("c1", "crowd", 2), work.Job("big", "too large")]
    events, ended = run(engine, tasks, work)
    kinds = {name: event.kind for name, event in ended.items()}
    assert kinds == {"c0": "finished", "c1": "finished", "big": "lost"}
    assert [e.kind for e in events if e.task == "big"] == ["started", "started", "lost"]
    assert "out of memory" in ended["big"].value
