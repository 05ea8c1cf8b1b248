"""run_grid and its command: what is run, what is kept, and what is told."""

import dataclasses
import html
import importlib.util
import io
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import typer.testing
from hypothesis import given
from hypothesis import strategies as st

from gradscope import data
from gradscope.ablation import run_grid
from gradscope.ablation.estimate import from_results, likeness, longest_first, makespan_s
from gradscope.ablation.plan import Plan
from gradscope.ablation.progress import Progress
from gradscope.ablation.store import Store
from gradscope.cli import run_view
from gradscope.cli.app import app
from gradscope.engines.local import Local
from gradscope.engines.task import Event, InProcess
from gradscope.errors import ConfigError, DataError

WAIT_S = 300.0


class Diary:
    """Notes what a run tells."""

    def __init__(self):
        self.plan, self.events, self.read = None, [], []

    def preparing(self, what, done, total):
        """Images are read."""
        self.read.append(what)

    def planned(self, plan):
        """Training begins."""
        self.plan = plan

    def happened(self, event):
        """Something did."""
        self.events.append(event)

    @property
    def begun(self):
        """Cells, in the order in which they were begun."""
        return [event.task for event in self.events if event.kind == "started"]


def run(grid, engine=None, folder="runs"):
    """Run in this process; the study and the diary."""
    diary = Diary()
    return run_grid(grid, folder, engine=engine or InProcess(), observe=diary), diary


def invoke(*arguments):
    """The command line, in this process."""
    return typer.testing.CliRunner().invoke(app, ["run-grid", *map(str, arguments)])


def numbers(study):
    """All that a run measures, timings aside."""
    rows = []
    for result in study.results:
        epochs = [dataclasses.replace(e, duration_s=0.0) for e in result.history.epochs]
        table = result.trace().to_pandas().to_csv() if result.trace_path else None
        rows.append((result.id, result.status, result.history.step_loss, epochs, table))
    return repr(rows)


def test_every_cell_is_trained_stored_and_told(tiny):
    """Four cells, twelve steps each: results, history and traces lie on disk."""
    grid = tiny.grid()
    study, diary = run(grid)
    assert [r.id for r in study.results] == [c.id for c in grid.cells()] == diary.begun
    for result in study.results:
        assert result.status == "done"
        assert len(result.history.step_loss) == 2 * 24 / 4
        assert [e.epoch for e in result.history.epochs] == [1, 2]
        assert result.classes == ("dark", "light")
        assert len(result.trace().steps) == 12
    finished = [e.value for e in diary.events if e.kind == "finished"]
    assert [r.history.epochs for r in finished] == [r.history.epochs[-1:] for r in study.results]
    assert numbers(study) == numbers(Store.load("runs"))


def test_what_is_stored_is_not_run_again(tiny):
    """The same grid: nothing to do; a changed setting: new cells, beside the old ones."""
    grid = tiny.grid()
    first, _ = run(grid)
    again, diary = run(grid)
    assert diary.begun == []
    assert len(diary.plan.stored) == 4
    assert numbers(again) == numbers(first)
    more = tiny.grid(matrix={"lr": [1e-2, 1e-3, 1e-4], "width": [2, 4]})
    study, diary = run(more)
    assert sorted(diary.begun) == sorted(
        {c.id for c in more.cells()} - {c.id for c in grid.cells()}
    )
    assert [r.status for r in study.results] == ["done"] * 6


def test_a_cell_that_raises_is_stored_and_tried_again(tiny):
    """Its status, its error and its traceback are kept; the next run tries again."""
    grid = tiny.grid(matrix={"trouble": ["", "once", "exit"]})
    study, _ = run(grid)
    done, once, left = study.results
    assert [r.status for r in study.results] == ["done", "failed", "failed"]
    assert once.error.endswith("RuntimeError: only this time")
    assert "tiny_nets.py" in once.traceback
    assert left.error == "SystemExit: 7"
    study, diary = run(grid)
    assert {r.id for r in diary.plan.retried} == {once.id, left.id}
    assert done.id not in diary.begun
    assert [r.status for r in study.results] == ["done", "done", "failed"]
    assert study.results[1].traceback == ""


def test_a_cell_that_diverges_is_a_result(tiny):
    """Its trace up to there is kept, and it is not run again."""
    grid = tiny.grid(matrix={"lr": [1e30, 1e-2]})
    study, _ = run(grid)
    assert [r.status for r in study.results] == ["diverged", "done"]
    assert "loss became" in study.results[0].error
    assert study.results[0].trace().steps
    assert run(grid)[1].begun == []


def test_processes_find_the_same_numbers_and_survive_a_death(tiny):
    """Local and in-process runs agree to the last bit; a killed process fails only its cell."""
    import torch

    grid = tiny.grid()
    threads = torch.get_num_threads()
    torch.set_num_threads(Local(2).threads)
    try:
        here, _ = run(grid, folder="here")
    finally:
        torch.set_num_threads(threads)
    there, _ = run(
        tiny.grid(
            matrix={"lr": [1e-2, 1e-3], "width": [2, 4], "trouble": ["kill", ""]},
            exclude=[{"lr": 1e-3, "trouble": "kill"}, {"width": 4, "trouble": "kill"}],
        ),
        Local(2),
        "there",
    )
    killed = [r for r in there.results if r.factors["trouble"] == "kill"]
    assert [r.status for r in killed] == ["failed"]
    assert "SIGKILL" in killed[0].error
    kept = [r for r in there.results if r.factors["trouble"] == ""]
    assert [r.status for r in kept] == ["done"] * 4
    assert [r.environment["threads"] for r in kept] == [Local(2).threads] * 4
    for mine, theirs in zip(here.results, kept, strict=True):
        assert mine.history.step_loss == theirs.history.step_loss
        assert mine.trace().to_pandas().equals(theirs.trace().to_pandas())


def test_data_are_read_once_each_and_before_anything_is_written(tiny, monkeypatch):
    """Two sizes of images, four cells: two data sets; bad data leave no folder behind."""
    grid = tiny.grid(matrix={"data.args.n": [16, 24], "lr": [1e-2, 1e-3]})
    asked = []
    monkeypatch.setattr(
        "gradscope.ablation.run.load",
        lambda config, *more, **named: (asked.append(config), data.load(config, *more, **named))[1],
    )
    study, _ = run(grid)
    assert len(asked[:2]) == len({c.model_dump_json() for c in asked[:2]}) == 2
    assert [len(r.history.step_loss) for r in study.results] == [8, 8, 12, 12]
    with pytest.raises(DataError, match="does not exist"):
        run(tiny.grid(data={"source": "folder", "root": "nowhere"}), folder="never")
    assert not (tiny.folder / "never").exists()


def test_an_unknown_engine_is_named(tiny):
    """With the likeliest meant."""
    with pytest.raises(ConfigError, match="unknown engine 'locl'; did you mean 'local'"):
        run_grid(tiny.grid(), "runs", engine="locl")
    with pytest.raises(ConfigError, match="at least one process"):
        run_grid(tiny.grid(), "runs", jobs=0)


def test_a_result_stored_before_its_process_died_is_kept(tiny):
    """Lost on its way to the parent, not on disk: the cell is done, and told so."""

    class Undertaker:
        """Does the work, and says that the process died right after."""

        def run(self, tasks, work, observe):
            for task in tasks:
                observe(Event(task.id, "started"))
                work(task, lambda told: None)
                observe(Event(task.id, "lost", "its process was killed by SIGKILL"))

    study, diary = run(tiny.grid(), Undertaker())
    assert [r.status for r in study.results] == ["done"] * 4
    told = [event.value for event in diary.events if event.kind == "finished"]
    assert [r.status for r in told] == ["done"] * 4


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_ray_is_told_before_anything_is_done(tiny):
    """One line with the extra to install; no image is read, no folder made."""
    with pytest.raises(ConfigError, match=r"Ray is not installed; .*gradscope-torch"):
        run_grid(tiny.grid(data={"source": "folder", "root": "nowhere"}), "runs", engine="ray")
    assert not (tiny.folder / "runs").exists()


def test_the_longest_cells_are_begun_first(tiny):
    """Twice the epochs take twice as long as what was run; cells that failed tell nothing."""
    study, _ = run(tiny.grid(matrix={"width": [4]}, train={"batch_size": 4, "epochs": 1}))
    mixed = tiny.grid(matrix={"width": [4], "epochs": [1, 2, 4], "lr": [1e-2, 1e-3]})
    seconds = from_results(mixed.cells(), study.results)
    assert seconds == {}, "a cell that is not of the grid tells nothing"
    ran = dataclasses.replace(study.results[0], id=mixed.cells()[0].id, duration_s=3.0)
    slower = dataclasses.replace(ran, id=mixed.cells()[1].id, duration_s=5.0)
    failed = dataclasses.replace(ran, id=mixed.cells()[2].id, duration_s=1e6, status="failed")
    seconds = from_results(mixed.cells(), [ran, slower, failed])
    assert [seconds[c.id] for c in mixed.cells()] == [
        4.0 * c.config.train.epochs for c in mixed.cells()
    ]
    order = longest_first(mixed.cells(), seconds)
    assert [c.config.train.epochs for c in order] == [4, 4, 2, 2, 1, 1]
    assert [c.id for c in longest_first(mixed.cells(), {})] == [c.id for c in mixed.cells()]


def test_what_costs_the_same_is_alike(tiny):
    """Rates, seeds and initial weights cost nothing; widths and batch sizes do."""
    grid = tiny.grid(
        matrix={"lr": [1e-2, 1e-3], "init": ["kaiming", "xavier"], "width": [2, 4]}, seeds=[0, 1]
    )
    assert len({likeness(cell.config) for cell in grid.cells()}) == 2


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(1, 3))
def test_the_makespan_is_that_of_a_queue(durations, jobs):
    """Against a clock that ticks: each process takes the next task when it is free."""
    waiting, free_at, clock = list(durations), [0] * jobs, 0
    while waiting:
        for i in range(jobs):
            if waiting and free_at[i] <= clock:
                free_at[i] = clock + waiting.pop(0)
        clock += 1
    assert makespan_s(durations, jobs) == max(free_at)


def test_the_remaining_time_counts_what_is_known(tiny):
    """After 10 s with one of four equal cells done and half of another: 10 / 1.5 * 2.5 s."""
    cells = tiny.grid().cells()
    clock = itertools.chain([0.0], itertools.repeat(10.0))
    left = run_view.Remaining(Plan(cells, (), ()), now=lambda: next(clock))
    assert math.isnan(left.seconds())
    left.update(Event(cells[0].id, "finished"))
    left.update(Event(cells[1].id, "progress", Progress(5, 10, 1, 0.7, 3.0)))
    assert left.seconds() == pytest.approx(10 / 1.5 * 2.5)


def test_the_log_has_one_line_per_finished_cell(tiny):
    """What is stored counts, errors are named, and no line is more than one."""
    grid = tiny.grid(matrix={"trouble": ["", "raise"], "lr": [1e-2, 1e-3]})
    stream = io.StringIO()
    run_grid(grid, "runs", engine=InProcess(), observe=run_view.Log(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "4 of 4 cells to train"
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"{i}/4 {cell.id}" for i, cell in enumerate(grid.cells(), 1)
    ]
    assert "done, loss" in lines[1]
    assert "RuntimeError: no such luck)" in lines[3]
    stream = io.StringIO()
    run_grid(grid, "runs", engine=InProcess(), observe=run_view.Log(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "2 of 4 cells to train, 2 are stored, 2 that failed before are tried again"
    assert lines[1].startswith("3/4 ")


def test_bars_show_each_running_cell(tiny):
    """On a terminal: all cells, the loss and the rate of those that run; names are not markup."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    cells = [dataclasses.replace(c, id=f"[red]{c.id}") for c in tiny.grid().cells()]
    with run_view.BarDisplay(console) as bars:
        bars.preparing("reading train images", 3, 9)
        bars.planned(Plan(tuple(cells), (), ()))
        bars.happened(Event(cells[0].id, "started"))
        bars.happened(Event(cells[0].id, "progress", Progress(5, 10, 1, 0.717, 33.0)))
        bars._bars.refresh()
        shown = stream.getvalue()
    assert "reading train images" in shown
    assert f"[red]{cells[0].id[5:20]}" in shown
    assert "loss 0.717, 33 images/s" in shown
    assert "1 running" in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (math.nan, "unknown time"),
    ],
)
def test_times_are_told_for_people(seconds, said):
    """Seconds, minutes, hours."""
    assert run_view.lasting(seconds) == said


def test_the_dry_run_trains_and_stores_nothing(tiny):
    """A table of all cells with a time each, and the time of all."""
    done = invoke(tiny.path, "--dry-run")
    assert done.exit_code == 0, done.output
    for cell in tiny.grid().cells():
        assert cell.id in done.stdout
    assert "4 of the cells to train: about" in done.stdout
    assert not (tiny.folder / "runs").exists()
    assert not (tiny.folder / "reports").exists()


def test_the_command_runs_the_grid_and_writes_the_report(tiny):
    """Table, opening, count and path on standard output; exit code 1 for the cells that failed."""
    tiny.grid(matrix={"lr": [1e-2, 1e30], "trouble": ["", "raise"]})
    done = invoke(tiny.path, "--jobs", 2, "--set", "train.epochs=1", "--out", "pages")
    assert done.exit_code == 1, done.output
    assert done.stdout.splitlines()[-2:] == [
        "2 of 4 cells, none twice; 2 failed",
        "pages/tiny.html",
    ]
    assert (tiny.folder / "pages" / "tiny.html").stat().st_size > 10_000
    study = Store.load("runs/tiny")
    assert [r.status for r in study.results] == ["done", "failed", "diverged", "failed"]
    for result in study.results:
        row = next(line for line in done.stdout.splitlines() if result.id in line)
        assert result.status in row
    assert "a model that talks" not in done.stdout
    failed = study.results[1].id
    line = next(x for x in done.stderr.splitlines() if x.startswith(f"{failed} failed"))
    assert line.endswith(f"no such luck; traceback in runs/tiny/{failed}/traceback.txt")
    assert (tiny.folder / "runs" / "tiny" / failed / "traceback.txt").is_file()


def test_the_command_ends_with_the_opening_of_the_report(tiny):
    """The sentences are those of the page; nothing failed: exit code 0."""
    tiny.grid(matrix={"lr": [1e-2, 1e-3]})
    done = invoke(tiny.path, "--jobs", 1)
    assert done.exit_code == 0, done.output
    page = (tiny.folder / "runs" / "tiny.html").read_text()
    told = done.stdout.splitlines()
    assert told[-2:] == ["2 of 2 cells, none twice", "runs/tiny.html"]
    last_of_table = max(
        i for i, line in enumerate(told) if line.startswith("\N{BOX DRAWINGS LIGHT UP AND RIGHT}")
    )
    opening = told[last_of_table + 1 : -2]
    assert opening
    assert "healthy" in opening[0]
    for sentence in opening:
        assert html.escape(sentence, quote=False) in page or sentence in page


def test_a_failing_factory_is_shown_by_the_dry_run_and_the_others_are_timed(tiny):
    """The reason stands in its row, the others have a time; exit code 1; nothing is stored."""
    tiny.grid(matrix={"trouble": ["raise", ""], "lr": [1e-2, 1e-3]})
    done = invoke(tiny.path, "--dry-run")
    assert done.exit_code == 1, done.output
    rows = [line for line in done.stdout.splitlines() if "-s0-" in line]
    assert [("fails:" in row, "pending" in row) for row in rows] == [
        (True, True), (True, True), (False, True), (False, True),
    ]  # fmt: skip
    assert "no such luck" in done.stdout
    assert "4 of the cells to train: about" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("; 2 fail")
    assert not (tiny.folder / "runs").exists()


def test_report_names_cells_that_failed_or_are_damaged(tiny):
    """On standard error, one line each; the page is written all the same."""
    grid = tiny.grid(matrix={"trouble": ["raise", "", "exit"]})
    run(grid, folder="runs/tiny")
    failed, done, _ = (cell.id for cell in grid.cells())
    (tiny.folder / "runs" / "tiny" / done / "result.json").write_text("{")
    ended = typer.testing.CliRunner().invoke(app, ["report", "runs/tiny", "-o", "flow.html"])
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines() == ["flow.html"]
    told = ended.stderr.splitlines()
    assert [line.split(" failed: ")[0] for line in told] == [cell.id for cell in grid.cells()]
    assert told[0].endswith(f"traceback in runs/tiny/{failed}/traceback.txt")
    assert "its files are damaged" in told[1]


FULL = """
import errno, os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from gradscope.cli import main
sys.argv = ["gradscope", "run-grid", "tiny.yaml", "--jobs", "1"]
main()
"""


def run_with_little_room(tiny, limit):
    """The command in a process that can write no file longer than the limit."""
    return subprocess.run(
        [sys.executable, "-c", FULL.format(limit=limit)],
        cwd=tiny.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX stand for a full disk")
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(20_000, marks=pytest.mark.slow),  # results and traces fit, the page does not
        2_000,  # the trace of a cell does not
        pytest.param(500, marks=pytest.mark.slow),  # the description of the grid does not
        pytest.param(100, marks=pytest.mark.slow),  # the images do not
        pytest.param(0, marks=pytest.mark.slow),  # nothing does
    ],
)
def test_a_full_disk_is_one_line_wherever_it_happens(tiny, limit):
    """Exit code 2 and one line that says so; with room again the same command goes on."""
    tiny.grid(matrix={"width": [2]})
    ended = run_with_little_room(tiny, limit)
    assert ended.returncode == 2, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in ended.stderr
    assert re.search("room|space", errors[0]), errors
    assert not list((tiny.folder / "runs").glob("tiny/.tmp-*"))
    if (tiny.folder / "runs" / "tiny" / "grid.json").exists():
        statuses = {r.status for r in Store.load("runs/tiny").results}
        assert statuses <= {"done", "pending"}, "the disk's fault was taken for the cell's"
    if limit >= 2_000:
        assert invoke(tiny.path, "--jobs", 1).exit_code == 0


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_an_interruption_keeps_what_is_finished(tiny, name):
    """Exit code 130, one line on how to go on, no process left; the same command goes on."""
    tiny.grid(matrix={"pause": [0.0, 60.0]})
    command = [sys.executable, "-c", "from gradscope.cli import main; main()", "run-grid",
               str(tiny.path), "--jobs", "1"]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=tiny.interruptible,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        read = []
        while not read or not read[-1].startswith("1/2"):
            read.append(process.stderr.readline())
            assert read[-1], read
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.2)
        os.killpg(process.pid, signal.Signals[name])
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == [
        "interrupted: finished cells are in runs/tiny; the same command goes on"
    ]
    assert [r.status for r in Store.load("runs/tiny").results] == ["done", "pending"]
    assert children
    assert psutil.wait_procs(children, timeout=WAIT_S)[1] == []
