"""Engines: every task ends with one event, whatever becomes of the processes."""

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time

import psutil
import pytest

from gradscope.engines import placement
from gradscope.engines.local import Local
from gradscope.engines.placement import Resources, cores
from gradscope.engines.ray import Ray
from gradscope.engines.task import Event, InProcess
from gradscope.errors import ConfigError

WAIT_S = 300.0
"""More than any of it takes on a busy machine."""


@pytest.fixture
def work(tiny):
    """The module of tasks, imported from the current folder."""
    return importlib.import_module("tiny_work")


def run(engine, tasks, work):
    """Run and collect the events."""
    events = []
    engine.run(tasks, work.work, events.append)
    return events


def ends(events):
    """Task -> its last event; each ended once."""
    last = [event for event in events if event.kind in ("finished", "lost")]
    assert len({event.task for event in last}) == len(last)
    return {event.task: event for event in last}


def until(condition):
    """Wait for it."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize("engine", [InProcess(), Local(2)], ids=["in process", "local"])
def test_all_tasks_are_done_and_one_that_raises_stops_no_other(engine, work):
    """Each is begun in order, tells, and ends with what it returned or why it did not."""
    tasks = [work.Job(f"t{i}", number=i) for i in range(5)]
    tasks.insert(2, work.Job("bad", "raise"))
    events = run(engine, tasks, work)
    assert [e.task for e in events if e.kind == "started"] == [t.id for t in tasks]
    ended = ends(events)
    assert {name: e.value for name, e in ended.items() if e.kind == "finished"} == {
        f"t{i}": i**2 for i in range(5)
    }
    assert ended["bad"].kind == "lost"
    assert ended["bad"].value == "ValueError: no such luck: bad"
    assert "tiny_work.py" in ended["bad"].traceback
    for i in range(5):
        mine = [(e.kind, e.value) for e in events if e.task == f"t{i}"]
        assert mine == [("started", None), ("progress", i), ("finished", i**2)]


def test_nothing_to_do_starts_nothing(work):
    """No task: no process, no event."""
    assert run(Local(2), [], work) == []


def test_a_process_that_dies_loses_only_its_task(work):
    """Killed by signal or ended by itself: the task is lost with the reason, the others go on."""
    jobs = [
        work.Job("a", number=3),
        work.Job("killed", "kill"),
        work.Job("left", "exit", 7),
        work.Job("b", number=4),
        work.Job("c", number=5),
    ]
    ended = ends(run(Local(2), jobs, work))
    assert {n: e.value for n, e in ended.items() if e.kind == "finished"} == {
        "a": 9,
        "b": 16,
        "c": 25,
    }
    assert ended["killed"].kind == ended["left"].kind == "lost"
    assert "SIGKILL" in ended["killed"].value
    assert "exit code 7" in ended["left"].value


def test_processes_stay_share_the_cores_and_keep_standard_output_clean(work, monkeypatch, capfd):
    """Two processes serve four tasks with their share of threads, set before torch is loaded."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    engine = Local(2)
    ended = ends(run(engine, [work.Job(f"w{i}", "where") for i in range(4)], work))
    found = {event.value for event in ended.values()}
    share = max(1, cores() // 2)
    assert {(omp, threads) for _, omp, threads in found} == {(str(share), share)}
    assert 1 <= len({pid for pid, _, _ in found}) <= 2
    assert os.getpid() not in {pid for pid, _, _ in found}
    assert "OMP_NUM_THREADS" not in os.environ
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.count("spoilt") == 4


@pytest.mark.parametrize("cause", ["kill", "interrupt"])
def test_no_process_outlives_its_parent(tiny, cause):
    """The parent is killed, or all are interrupted as by Ctrl-C: soon nobody is left."""
    parent = subprocess.Popen(
        [sys.executable, "tiny_work.py"],
        cwd=tiny.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=tiny.interruptible,
    )
    with parent:
        children = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        if cause == "kill":
            parent.kill()
        else:
            os.killpg(parent.pid, signal.SIGINT)
        gone, alive = psutil.wait_procs(children, timeout=WAIT_S)
        told = parent.communicate(timeout=WAIT_S)[1]
    assert (len(gone), alive) == (2, [])
    if cause == "interrupt":
        assert told.count("Traceback") == 1, "only the parent speaks of it"
        assert "KeyboardInterrupt" in told


def test_a_script_without_a_guard_is_not_run_again_in_each_process(tiny):
    """What a notebook's user copies into a file has no ``if __name__ == "__main__"``."""
    script = tiny.folder / "unguarded.py"
    script.write_text(
        "import tiny_work\n"
        "from gradscope.engines.local import Local\n"
        'print("begun", flush=True)\n'
        "jobs = [tiny_work.Job(str(i), 'square', i) for i in range(3)]\n"
        "Local(2).run(jobs, tiny_work.work, lambda e: e.kind == 'finished' and print(e.value))\n"
    )
    ended = subprocess.run(
        [sys.executable, script.name],
        cwd=tiny.folder,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
        check=True,
    )
    assert sorted(ended.stdout.split()) == ["0", "1", "4", "begun"], ended.stderr


def test_messages_are_small(work):
    """What travels is the task and the event, not images or traces."""
    assert len(pickle.dumps(Event("t", "progress", 1.0))) < 500


def test_the_share_of_the_cores():
    """Never less than one thread, and the same however many tasks are left."""
    assert Local(1).threads == cores()
    assert Local(10**6).threads == 1


def test_each_process_sees_its_own_gpus(work, monkeypatch):
    """Two of three GPUs' worth of processes: each GPU is seen by one at a time, none by two."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-abc")
    engine = Local(8, Resources(cpus=1, gpus=1))
    places = engine.places
    monkeypatch.setattr(placement, "cores", lambda: 8)
    assert Local(8, Resources(cpus=1, gpus=1)).places == (("4",), ("5",), ("GPU-abc",))
    assert places == (("4",), ("5",), ("GPU-abc",))[: cores()]
    events = run(engine, [work.Job(f"g{i}", "gpu", 0.3) for i in range(6)], work)
    seen = {e.task: e.value for e in events if e.kind == "progress"}
    assert set(seen.values()) == {"4", "5", "GPU-abc"}
    busy = set()
    for event in events:
        if event.kind == "progress":
            assert event.value not in busy, "two processes on one GPU"
            busy.add(event.value)
        elif event.kind == "finished":
            busy.discard(seen[event.task])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,GPU-abc"


@pytest.mark.slow
def test_what_was_crowded_is_tried_once_more_alone(work):
    """Two that have no room beside each other both end well; one too large for all is lost."""
    tasks = [work.Job("a", "crowd", 1.0), work.Job("b", "crowd", 1.0), work.Job("c", "too large")]
    events = run(Local(2), tasks, work)
    ended = ends(events)
    assert {name: event.kind for name, event in ended.items()} == {
        "a": "finished",
        "b": "finished",
        "c": "lost",
    }
    assert ended["c"].value == "OutOfMemoryError: CUDA out of memory"
    assert [e.task for e in events if e.kind == "started"].count("c") == 2
    assert ended["a"].value != ended["b"].value, "the second had what the first kept"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(work):
    """One line with what to install."""
    with pytest.raises(ConfigError, match=r"Ray is not installed; .*gradscope-torch\[ray\]"):
        Ray().run([work.Job("t")], work.work, print)
