"""A grid that is killed again and again ends as one that ran through."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gradscope.ablation.store import Store

KILLS = 10
WAIT_S = 300.0
"""More than any of it takes on a busy machine."""


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
        """Until so many lines were told: one when training begins, one per finished cell."""
        while lines and (line := self.process.stderr.readline()):
            lines -= line[0].isdigit()  # the models talk as well

    def kill(self):
        """End the whole group at once, and see that nobody is left."""
        family = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=WAIT_S)
        assert psutil.wait_procs(family, timeout=WAIT_S)[1] == []

    def finish(self):
        """Let it run to its end; what it told on standard error."""
        out, err = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, out + err
        return err


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
@pytest.mark.xdist_group("processes")  # it waits for what it starts
@pytest.mark.skipif(os.name != "posix", reason="process groups are killed")
def test_a_run_killed_ten_times_ends_with_the_same_table(tiny):
    """The whole group is killed at ten random moments; what is finished is kept each time."""
    tiny.grid(
        matrix={"lr": [1e-2, 1e-3, 1e30], "width": [2, 4], "pause": [0.0, 0.1]},
        train={"batch_size": 4, "epochs": 3},
    )
    straight, stormy = tiny.folder / "straight", tiny.folder / "stormy"
    run, started = Run(tiny.path, straight), time.monotonic()
    run.wait_for(2)
    first_cell_s = time.monotonic() - started
    run.wait_for(10)
    cell_s = (time.monotonic() - started - first_cell_s) / 10
    run.finish()
    chance = random.Random(0)
    finished = []
    for i in range(KILLS):
        run = Run(tiny.path, stormy)
        if i % 2:  # while it starts up
            time.sleep(chance.uniform(0, first_cell_s))
        else:  # while cells are trained and stored
            run.wait_for(chance.randint(1, 3))
            time.sleep(chance.uniform(0, cell_s))
        run.kill()
        finished.append(_stored(stormy))
    assert finished == sorted(finished), "a finished cell was lost"
    assert len(set(finished)) > 2, "too few kills came while there was something to lose"
    assert finished[KILLS - 3] < 12, "the last kills came when all was done"
    Run(tiny.path, stormy).finish()
    assert table(stormy) == table(straight)
    statuses = [row["status"] for row in table(stormy)]
    assert statuses == ["done"] * 8 + ["diverged"] * 4
    left = {p.name for p in stormy.iterdir()} - {row["id"] for row in table(stormy)}
    assert left <= {"grid.json", ".lock", ".claims.lock"}


def _stored(runs: Path) -> int:
    if not (runs / "grid.json").exists():
        return 0
    return sum(result.status in ("done", "diverged") for result in Store.load(runs).results)
