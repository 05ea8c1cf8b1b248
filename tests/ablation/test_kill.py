"""A grid whose processes are killed again and again ends as one that ran through."""

import dataclasses
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import gradscope
from gradscope.ablation import run_grid
from gradscope.ablation.run import Silent
from gradscope.ablation.store import Store

WAIT_S = 300.0
"""More than any of it takes on a busy machine."""

ROOT = Path(gradscope.__file__).parents[1]
"""Other processes run the very package that is tested."""


class Run:
    """``gradscope run-grid`` as a user starts it, in a process group of its own."""

    def __init__(self, grid, runs):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from gradscope.cli import main; main()"),
                *("run-grid", str(grid), "--runs", str(runs), "--jobs", "2"),
                *("--out", str(runs.with_suffix(".html"))),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, lines):
        """Until so many lines were told: one when training begins, one per ended cell."""
        while lines and (line := self.process.stderr.readline()):
            lines -= line[0].isdigit()  # the models talk as well

    def kill_parent(self):
        """And see that its children die of it."""
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        parent.kill()
        self.process.communicate(timeout=WAIT_S)
        assert psutil.wait_procs(family, timeout=WAIT_S)[1] == []

    def kill_group(self):
        """All at once, as the kernel does that has no memory left, or a scheduler."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=WAIT_S)

    def kill_worker(self, chance):
        """One of those that train, where there is one yet; the others go on."""
        workers = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                workers += [child] if "spawn_main" in " ".join(child.cmdline()) else []
        if workers:
            chance.choice(workers).kill()
        return bool(workers)

    @property
    def is_over(self):
        """Whether it has come to its end."""
        return self.process.poll() is not None

    def finish(self):
        """Let it run to its end; what it told on standard error."""
        out, err = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, out + err
        return err


def kill_node(grid, runs):
    """Two nodes of Ray; one is killed when a cell has ended, all is stopped two cells later."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    ended = []

    class Axe(Silent):
        """Counts, kills, and stops."""

        def happened(self, event):
            """Once for each event."""
            if event.kind == "finished" and event.value.status != "running":
                ended.append(event.task)
                if len(ended) == 1:
                    cluster.remove_node(second, allow_graceful=False)
                if len(ended) == 3:
                    raise KeyboardInterrupt

    try:
        with suppress(KeyboardInterrupt):
            run_grid(grid, runs, engine="ray", observe=Axe())
    finally:
        ray.shutdown()
        cluster.shutdown()


def table(runs):
    """What a run measured, timings aside: results, and every value of the traces."""
    rows = []
    for result in Store.load(runs).results:
        epochs = [dataclasses.replace(e, duration_s=0.0) for e in result.history.epochs]
        trace = result.trace().to_pandas().to_csv(float_format="%r")
        rows.append(
            {
                "id": result.id,
                "status": result.status,
                "factors": result.factors,
                "config": result.config,
                "losses": repr(result.history.step_loss),
                "epochs": repr(epochs),
                "error": result.error,
                "trace": trace,
            }
        )
    return rows


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are killed")
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_run_whose_processes_are_killed_ten_times_ends_with_the_same_table(tiny, monkeypatch):
    """Workers, parents, both, nodes of a cluster, in any order and at any moment."""
    monkeypatch.setenv("PYTHONPATH", f"{tiny.folder}{os.pathsep}{ROOT}")
    grid = tiny.grid(
        matrix={"lr": [1e-2, 1e-3, 1e30], "width": [2, 4], "pause": [0.0, 0.1]},
        train={"batch_size": 4, "epochs": 3},
        seeds=[0, 1, 2],
        resources={"cpus": 1},  # more threads change last bits
    )
    straight, stormy = tiny.folder / "straight", tiny.folder / "stormy"
    run, started = Run(tiny.path, straight), time.monotonic()
    run.wait_for(2)
    first_cell_s = time.monotonic() - started
    run.wait_for(10)
    cell_s = (time.monotonic() - started - first_cell_s) / 10
    run.finish()
    chance = random.Random(1)
    node = "node" if importlib.util.find_spec("ray") else "parent"
    blows = ["worker"] * 4 + ["parent"] * 3 + ["group"] + [node] * 2
    chance.shuffle(blows)
    run, finished, missed = None, [], 0
    for blow in blows:
        if blow == "node":
            if run is not None:
                run.kill_group()
                run = None
            kill_node(grid, stormy)
        else:
            run = Run(tiny.path, stormy) if run is None or run.is_over else run
            if chance.random() < 0.3:  # while it starts up
                time.sleep(chance.uniform(0, first_cell_s))
            else:  # while cells are trained and stored
                run.wait_for(chance.randint(1, 3))
                time.sleep(chance.uniform(0, cell_s))
            if blow == "worker":
                missed += not run.kill_worker(chance)
            else:
                (run.kill_parent if blow == "parent" else run.kill_group)()
                run = None
        finished.append(_stored(stormy))
    if run is not None:
        run.process.communicate(timeout=WAIT_S)
    assert finished == sorted(finished), "a finished cell was lost"
    assert len(set(finished)) > 2, "too few kills came while there was something to lose"
    assert finished[-3] < 36, "the last kills came when all was done"
    assert missed < 3, "too few workers were killed"
    Run(tiny.path, stormy).finish()
    assert table(stormy) == table(straight)
    statuses = [row["status"] for row in table(stormy)]
    assert (statuses.count("done"), statuses.count("diverged")) == (24, 12)
    left = {p.name for p in stormy.iterdir()} - {row["id"] for row in table(stormy)}
    assert left <= {"grid.json", ".lock", ".claims.lock"}


def _stored(runs: Path) -> int:
    if not (runs / "grid.json").exists():
        return 0
    return sum(result.status in ("done", "diverged") for result in Store.load(runs).results)
