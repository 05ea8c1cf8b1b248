"""``gradscope diagnose``: what it prints where, and its exit codes."""

import dataclasses
import json
import math
import re
import shutil

import pytest
import zoo
from handwritten import Net

from gradscope.ablation.store import Store
from gradscope.ablation.work import result_of
from gradscope.cli.app import main
from gradscope.trace.table import Trace


@pytest.fixture
def run(capsys, monkeypatch):
    """The command as the shell runs it: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["gradscope", "diagnose", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """A healthy and a sick trace on disk."""
    folder = tmp_path_factory.mktemp("traces")
    return {
        name: zoo.watch_member(zoo.draw(name, 0)).save(folder / f"{name}.parquet")
        for name in ("kaiming_mlp", "deep_sigmoid")
    }


def test_healthy_run_exits_with_0(run, traces):
    """The verdict on stdout, nothing on stderr."""
    code, out, err = run(traces["kaiming_mlp"])
    assert (code, err) == (0, "")
    assert out.startswith("verdict: healthy")


def test_sick_run_exits_with_1_and_tells_the_remedy(run, traces):
    """Sigmoids in a chain: the advice names them."""
    code, out, err = run(traces["deep_sigmoid"])
    assert (code, err) == (1, "")
    assert out.startswith("verdict: vanishing")
    assert "sigmoids by ReLU" in " ".join(out.split())


@pytest.mark.parametrize("name", ["kaiming_mlp", "deep_sigmoid"])
def test_what_the_verdict_rests_on_is_shown_and_in_the_json(run, traces, name):
    """Every parameter of the network in the line under the verdict, and in the document."""
    count = len(list(zoo.draw(name, 0).model.parameters()))
    _, out, _ = run(traces[name])
    shown = " ".join(out.split())
    assert re.match(r"verdict: \S+ rests on step 0 \(gradients of", shown)
    assert f"gradients of {count} parameters and at " in shown
    told = json.loads(run(traces[name], "--json")[1])["rests_on"]
    assert (told["steps"], told["gradients"], told["unseen"]) == (1, count, [])


def test_the_stretch_behind_the_verdict_is_shown_and_in_the_json(run, tmp_path, monkeypatch):
    """Four level blocks, then nine factors of 0.4: the ends of the decay, its decades and factor.

    0.4^9 is 2.6e-4, that is 3.58 decades, or a factor of 3,800.
    """
    net, norm = Net(14), 1.0
    for i in range(13, -1, -1):
        net.put("activation_grad", f"l{i}", norm=norm)
        norm *= 0.4 if i > 4 else 1.0
    path = net.trace().save(tmp_path / "run.parquet")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(path)
    shown = " ".join(out.split())
    assert code == 1
    assert "l4 ... l13" in shown
    assert "total -3.58 decades (a decay by a factor of 3,800)" in shown
    finding = json.loads(run(path, "--json")[1])["findings"][0]
    assert finding["where"] == "l4 ... l13"
    assert finding["evidence"]["total"]["unit"] == "decades"
    assert finding["evidence"]["total"]["value"] == pytest.approx(9 * math.log10(0.4), abs=1e-3)
    assert finding["evidence"]["blocks"]["value"] == 10


def test_json_is_all_there_is_on_stdout(run, traces):
    """One JSON document, the same verdict, the same exit code."""
    code, out, _ = run(traces["deep_sigmoid"], "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "vanishing"


def test_bad_file_is_one_line_and_exit_2(run, tmp_path):
    """A missing file and a file of another kind."""
    (tmp_path / "x.parquet").write_text("no")
    for path in (tmp_path / "gone.parquet", tmp_path / "x.parquet"):
        code, out, err = run(path)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert path.name in err


@pytest.fixture
def study(tmp_path, traces, tiny):
    """A folder of four cells: healthy, sick, failed and not run; their ids in that order."""
    grid = tiny.grid()
    store = Store(tmp_path / "runs")
    store.prepare(grid)
    ids = [cell.id for cell in grid.cells()]
    for cell, name in zip(grid.cells(), ["kaiming_mlp", "deep_sigmoid", None], strict=False):
        result = result_of(cell, "failed", error="no such luck")
        if name:
            result = dataclasses.replace(result, status="done", error="")
        store.save(result, Trace.load(traces[name]) if name else None)
    return store.root, ids


def test_every_cell_of_a_study_is_judged(run, study):
    """A table with verdicts; cells that failed are named on stderr; one is sick: exit code 1."""
    root, (well, sick, broken, waiting) = study
    code, out, err = run(root)
    rows = {cell: line for line in out.splitlines() for cell in study[1] if cell in line}
    assert code == 1
    assert "healthy" in rows[well]
    assert "vanishing" in rows[sick]
    assert "failed" in rows[broken]
    assert "pending" in rows[waiting]
    assert err.splitlines() == [f"{broken} failed: no such luck"]


def test_the_judgement_of_a_study_as_json(run, study):
    """A list, one entry per cell, with the whole diagnosis where there is a trace."""
    root, ids = study
    code, out, _ = run(root, "--json")
    told = json.loads(out)
    assert code == 1
    assert [each["cell"] for each in told] == ids
    assert [each["status"] for each in told] == ["done", "done", "failed", "pending"]
    verdicts = [each["diagnosis"] and each["diagnosis"]["verdict"] for each in told]
    assert verdicts == ["healthy", "vanishing", None, None]
    assert told[2]["error"] == "no such luck"


def test_a_study_that_is_well_exits_with_0(run, study, tiny):
    """Cells that were not run yet are no reason; with none run there is nothing to judge."""
    root, (_, sick, broken, _) = study
    for cell in (sick, broken):
        shutil.rmtree(root / cell)
    assert run(root)[0] == 0
    shutil.rmtree(root / study[1][0])
    code, out, err = run(root)
    assert (code, out) == (2, "")
    assert "no cell has been run yet" in err
