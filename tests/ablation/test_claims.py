"""Claims: one owner at a time, and none after its death."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gradscope.ablation import claims, run_grid
from gradscope.ablation.claims import claimed, is_claimed, sweep
from gradscope.ablation.run import Silent
from gradscope.ablation.store import Store
from gradscope.engines.task import InProcess

WAIT_S = 300.0


def test_a_claim_has_one_owner_and_ends_with_it(tmp_path):
    """A second is refused while the first lives; the file names host and process."""
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second:
        assert (first, second) == (True, False)
        with claimed(tmp_path, "b") as other:
            assert other
        owner = json.loads((tmp_path / ".claim-a").read_text())
        assert owner["pid"] == os.getpid()
        assert is_claimed(tmp_path, "a")
    assert not is_claimed(tmp_path, "a")
    assert {path.name for path in tmp_path.iterdir()} <= {".claims.lock"}


def test_of_many_at_once_one_has_it(tmp_path):
    """Twenty threads that all begin together."""
    gate, won = threading.Barrier(20), []

    def contend():
        gate.wait()
        with claimed(tmp_path, "a") as mine:
            won.append(mine)
            gate.wait()

    threads = [threading.Thread(target=contend) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 19 + [True]


def test_the_claim_of_a_process_that_died_is_void(tmp_path):
    """Killed while it had it; a process that now has its number is another one."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gradscope.ablation.claims import claimed\n"
        "with claimed(Path(sys.argv[1]), 'a'): print('has it', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "has it\n"
        assert is_claimed(tmp_path, "a")
        owner.kill()
    assert not is_claimed(tmp_path, "a")
    told = json.loads((tmp_path / ".claim-a").read_text())
    later = {"pid": os.getpid(), "started": told["started"] - 60.0}
    (tmp_path / ".claim-a").write_text(json.dumps(told | later))
    assert not is_claimed(tmp_path, "a")
    sweep(tmp_path)
    assert not (tmp_path / ".claim-a").exists()


def test_another_machine_is_believed_while_its_heart_beats(tmp_path, monkeypatch):
    """Its process cannot be looked at; what counts is the age of the file, by the disk's clock."""
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.01)
    with claimed(tmp_path, "a"):
        path = tmp_path / ".claim-a"
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
        old = time.time() - 2 * claims.PATIENCE_S
        os.utime(path, (old, old))
        deadline = time.monotonic() + WAIT_S
        while not is_claimed(tmp_path, "a"):
            assert time.monotonic() < deadline, "no heartbeat came"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    assert is_claimed(tmp_path, "a")
    os.utime(path, (old, old))
    assert not is_claimed(tmp_path, "a")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', b"\xff"])
def test_a_claim_that_was_cut_short_is_void(tmp_path, content):
    """Its writer was killed at it."""
    (tmp_path / ".claim-a").write_bytes(content)
    os.utime(tmp_path / ".claim-a", (0, 0))
    assert not is_claimed(tmp_path, "a")


def test_what_a_living_run_writes_is_not_swept(tmp_path):
    """Half a cell of another run stays while its claim does."""
    for name in ("a", "b"):
        (tmp_path / f".tmp-{name}-s0-12345678-abcdefab").mkdir()
    with claimed(tmp_path, "a-s0-12345678"):
        sweep(tmp_path)
        left = [p.name for p in tmp_path.glob(".tmp-*")]
        assert left == [".tmp-a-s0-12345678-abcdefab"]


def test_a_claimed_cell_is_waited_for_and_read(tiny):
    """Another run has a cell: the others are trained first, its result is read once it is there."""
    grid = tiny.grid(matrix={"width": [2, 4]})
    run_grid(grid, "other", engine=InProcess())
    held = grid.cells()[0]
    store = Store(tiny.folder / "runs")
    store.root.mkdir()
    heard = []

    class Watcher:
        """Finishes the other run's cell once this one has trained all else."""

        def preparing(self, *_):
            """Nothing."""

        def planned(self, plan):
            """Nothing."""

        def happened(self, event):
            """Note it."""
            if event.kind == "finished":
                heard.append((event.task, event.value.status))
            if len(heard) == 2 and event.kind == "finished":
                (tiny.folder / "other" / held.id).rename(store.root / held.id)
                claim.__exit__(None, None, None)

    claim = claimed(store.root, held.id)
    assert claim.__enter__()
    study = run_grid(grid, "runs", engine=InProcess(), observe=Watcher())
    other = grid.cells()[1].id
    assert heard == [(held.id, "running"), (other, "done"), (held.id, "done")]
    assert [r.status for r in study.results] == ["done", "done"]


def test_what_a_run_left_that_was_killed_as_its_cell_was_stored(tiny):
    """Killed between storing and letting go: no other run claims that cell again."""
    grid = tiny.grid(matrix={"width": [2, 4]})
    run_grid(tiny.grid(matrix={"width": [2]}), "runs", engine=InProcess())
    claim = tiny.folder / "runs" / f".claim-{grid.cells()[0].id}"

    class Killed(Silent):
        """Another run was, just after this one had planned."""

        def planned(self, plan):
            """Its claim is left."""
            assert [cell.id for cell in plan.todo] == [grid.cells()[1].id]
            claim.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**30, "started": 0}))

    study = run_grid(grid, "runs", engine=InProcess(), observe=Killed())
    assert [r.status for r in study.results] == ["done", "done"]
    assert not claim.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are killed")
def test_two_runs_share_a_folder_and_one_is_killed(tiny):
    """Both train, no cell twice; the second takes the first's when that is killed: one table."""
    grid = tiny.grid(matrix={"lr": [1e-2, 1e-3], "width": [2, 4], "pause": [0.0, 0.5]})
    straight = run_grid(grid, "straight", engine=InProcess())
    command = [
        *(sys.executable, "-c", "from gradscope.cli import main; main()"),
        *("run-grid", str(tiny.path), "--runs", "shared", "--jobs", "1"),
    ]
    pair = [
        subprocess.Popen(
            [*command, "--out", f"{i}.html"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]  # fmt: skip
    while not pair[0].stderr.readline().startswith("1/8"):
        assert pair[0].poll() is None
    os.killpg(pair[0].pid, signal.SIGKILL)
    pair[0].communicate(timeout=WAIT_S)
    out, err = pair[1].communicate(timeout=4 * WAIT_S)
    assert pair[1].returncode == 0, err
    assert "8 of 8 cells, none twice" in out
    shared = Store.load("shared")
    assert [r.status for r in shared.results] == ["done"] * 8
    for one, other in zip(straight.results, shared.results, strict=True):
        assert one.history.step_loss == pytest.approx(other.history.step_loss, rel=1e-4)
    assert not list((tiny.folder / "shared").glob(".claim-*"))
