"""SLURM through submitit: in its local stand-in, and on a real cluster where one answers."""

import importlib
import json
import shutil
import subprocess

import pytest

from gradscope.ablation import run_grid
from gradscope.engines.local import Local
from gradscope.engines.placement import Resources
from gradscope.engines.slurm import Slurm
from gradscope.errors import ConfigError

pytest.importorskip("submitit", reason="pip install 'gradscope-torch[slurm]'")


@pytest.fixture
def work(tiny, monkeypatch):
    """The module of tasks, which jobs find on their import path."""
    monkeypatch.setenv("PYTHONPATH", str(tiny.folder), prepend=":")
    return importlib.import_module("tiny_work")


def has_slurm():
    """Whether a cluster answers."""
    if shutil.which("sinfo") is None:
        return False
    told = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False)
    return told.returncode == 0 and "idle" in told.stdout


def test_what_is_asked_of_the_scheduler(tmp_path):
    """Time, memory and GPUs as SLURM counts them; options of one's own come last."""
    needs = Resources(cpus=2, gpus=0.5, memory_gb=4, time_min=0.5)
    engine = Slurm(tmp_path, 3, needs, options={"slurm_partition": "gpu"})
    assert engine._demands() == {
        "name": "gradscope",
        "timeout_min": 1,
        "cpus_per_task": 2,
        "gpus_per_node": 1,
        "mem_gb": 4,
        "slurm_array_parallelism": 3,
        "slurm_partition": "gpu",
    }


@pytest.mark.filterwarnings("default")
def test_jobs_end_as_tasks_do_here(work, tmp_path):
    """Done, raised and killed, in processes of their own, with the threads that were asked for."""
    tasks = [
        work.Job("a", number=3),
        work.Job("bad", "raise"),
        work.Job("killed", "kill"),
        work.Job("w", "where"),
    ]
    events = []
    Slurm(tmp_path / "jobs", cluster="local").run(tasks, work.work, events.append)
    ended = {e.task: e for e in events if e.kind in ("finished", "lost")}
    assert {name: event.kind for name, event in ended.items()} == {
        "a": "finished", "bad": "lost", "killed": "lost", "w": "finished",
    }  # fmt: skip
    assert ended["a"].value == 9
    assert ended["bad"].value == "ValueError: no such luck: bad"
    assert ended["killed"].value.startswith("job ")
    assert ended["w"].value[1:] == ("1", 1)
    assert sorted(e.task for e in events if e.kind == "started") == ["a", "bad", "killed", "w"]
    assert json.loads((tmp_path / "jobs" / "jobs.json").read_text()) == {}


def test_a_scheduler_that_takes_no_job_is_one_line(work, tmp_path, monkeypatch):
    """No sbatch on this machine."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"engine 'slurm': jobs cannot be submitted .*'local'"):
        Slurm(tmp_path / "jobs").run([work.Job("t")], work.work, print)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not has_slurm(), reason="no SLURM cluster answers here")
def test_an_array_of_cells_on_a_cluster(work, tiny):
    """Twelve cells as an array; one job is cancelled, one is killed; run again, all are done."""
    grid = tiny.grid(matrix={"lr": [1e-2, 1e-3], "width": [2, 4], "pause": [0.0, 4.0, 8.0]})
    begun = []

    class Hand:
        """Cancels the third job that runs, and kills the fourth."""

        def preparing(self, *_):
            """Nothing."""

        def planned(self, plan):
            """Nothing."""

        def happened(self, event):
            """Act on the start of a job."""
            if event.kind != "started":
                return
            begun.append(event.task)
            jobs = json.loads((tiny.folder / "runs" / ".slurm" / "jobs.json").read_text())
            if len(begun) == 3 and event.task in jobs:
                subprocess.run(["scancel", jobs[event.task]], check=True)
            if len(begun) == 4 and event.task in jobs:
                subprocess.run(["scancel", "-s", "KILL", jobs[event.task]], check=True)

    first = run_grid(grid, "runs", engine="slurm", observe=Hand())
    assert {r.status for r in first.results} <= {"done", "failed"}
    again = run_grid(grid, "runs", engine="slurm")
    assert [r.status for r in again.results] == ["done"] * 12
    local = run_grid(grid, "local", engine=Local(1, Resources(cpus=1)))
    for mine, theirs in zip(local.results, again.results, strict=True):
        assert mine.history.step_loss == theirs.history.step_loss
