"""SLURM through submitit: in its local stand-in, and on a real cluster where one answers."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import gradscope
from gradscope.ablation import run_grid
from gradscope.engines.local import Local
from gradscope.engines.placement import Resources
from gradscope.engines.slurm import Slurm
from gradscope.errors import ConfigError

pytest.importorskip("submitit", reason="pip install 'gradscope-torch[slurm]'")


@pytest.fixture
def work(tiny, monkeypatch):
    """The module of tasks, which jobs find on their import path."""
    monkeypatch.setenv("PYTHONPATH", f"{tiny.folder}{os.pathsep}{ROOT}")
    return importlib.import_module("tiny_work")


ROOT = Path(gradscope.__file__).parents[1]
"""Other processes run the very package that is tested."""

SLURM = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch")

CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n):
    """Ports that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@pytest.fixture
def cluster(monkeypatch):
    """SLURM on this machine, of one node with two processors, without accounting."""
    missing = [name for name in SLURM if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs {', '.join(missing) or 'root'}: slurm-wlm and munge of Debian, as root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # short: a socket's path is limited
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        conf = CONF.format(folder=folder, host=socket.gethostname(), ports=free_ports(2))
        (folder / "slurm.conf").write_text(conf)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        files = {"socket": "munge.socket", "key-file": "key", "log-file": "munge.log"}
        files |= {"pid-file": "munged.pid", "seed-file": "seed"}
        munge = [f"--{option}={folder / file}" for option, file in files.items()]
        try:
            for command in (["munged", "--force", *munge], ["slurmctld", "-c"], ["slurmd", "-c"]):
                subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
            subprocess.run(["srun", "--immediate=120", "true"], check=True, timeout=180)
            yield
        finally:
            for daemon in ("slurmd", "slurmctld", "munged"):
                with suppress(OSError, ValueError):
                    stop(int((folder / f"{daemon}.pid").read_text()))


def stop(pid):
    """End a daemon and wait for its end."""
    process = psutil.Process(pid)
    process.terminate()
    process.wait(120)


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


class Hand:
    """Acts on jobs while a study runs, and closes it."""

    def __init__(self, folder, blows, closing=None):
        self.folder, self.blows, self.closing = folder, iter(blows), closing
        self.seen, self.ended = {}, []

    def preparing(self, *_):
        """Nothing."""

    def planned(self, plan):
        """Nothing."""

    def happened(self, event):
        """Strike a job that starts; stop after so many ends."""
        jobs = json.loads((self.folder / "jobs.json").read_text())
        self.seen = {**jobs, **self.seen}
        if event.kind == "started" and event.task in jobs and (blow := next(self.blows, None)):
            subprocess.run([*blow, jobs[event.task]], check=True)
        if event.kind == "finished":
            self.ended.append(event.value.status)
            if len(self.ended) == self.closing:
                raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("cluster", "work")
def test_an_array_of_cells_on_a_cluster(tiny):
    """Twelve cells; jobs cancelled, killed and queued again, the command closed: all are done."""
    grid = tiny.grid(matrix={"lr": [1e-2, 1e-3], "width": [2, 4], "pause": [0.0, 0.5, 1.0]})
    folder = tiny.folder / "runs" / ".slurm"
    first = Hand(folder, [["scancel"], ["scancel", "-s", "KILL"]], closing=5)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, "runs", engine="slurm", observe=first)
    assert "failed" in first.ended
    left = json.loads((folder / "jobs.json").read_text())
    second = Hand(folder, [["scontrol", "requeue"]])
    study = run_grid(grid, "runs", engine="slurm", observe=second)
    kept = [task for task, job in left.items() if second.seen.get(task) == job]
    assert kept, "none was taken up again"
    assert [r.status for r in study.results] == ["done"] * 12
    local = run_grid(grid, "local", engine=Local(1, Resources(cpus=1)))
    for mine, theirs in zip(local.results, study.results, strict=True):
        assert mine.history.step_loss == theirs.history.step_loss
