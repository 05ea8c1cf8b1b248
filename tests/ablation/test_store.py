"""The store: what goes in comes out, and no damage on disk is more than a damaged cell."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gradscope.ablation.store import Store
from gradscope.errors import ConfigError
from gradscope.study.results import CellResult, Epoch, History
from gradscope.watching import watch

FLOATS = st.floats()
ANY_TEXT = st.text(st.characters())  # lone surrogates too: they stand in names of files
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
EPOCHS = st.builds(
    Epoch,
    epoch=st.integers(1, 99),
    step=st.integers(0),
    train_loss=FLOATS,
    train_accuracy=FLOATS,
    val_loss=FLOATS,
    val_accuracy=FLOATS,
    confusion=st.lists(st.lists(st.integers(0), max_size=3).map(tuple), max_size=3).map(tuple),
    duration_s=FLOATS,
)
HISTORIES = st.builds(
    History,
    step_loss=st.lists(FLOATS, max_size=5).map(tuple),
    epochs=st.lists(EPOCHS, max_size=2).map(tuple),
)


@pytest.fixture
def store(tmp_path):
    """A store in a folder that is not there yet."""
    return Store(tmp_path / "runs" / "tiny")


@pytest.fixture(scope="module")
def trace():
    """Of two steps of a small network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=1) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
    return scope.trace()


def result_of(cell, status="done", **fields):
    """A result as the trainer makes it."""
    config = cell.config.model_dump(mode="json")
    return CellResult(cell.id, dict(cell.factors), cell.config.seed, status, config, **fields)


@pytest.fixture
def filled(tiny, store, trace):
    """A store in which all four cells are done, and its grid."""
    grid = tiny.grid()
    store.prepare(grid)
    for cell in grid.cells():
        store.save(result_of(cell), trace)
    return store, grid


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=HISTORIES,
    environment=st.dictionaries(st.text(), JSON, max_size=3),
    error=ANY_TEXT,
    told=ANY_TEXT,
    seconds=FLOATS,
)
def test_a_result_comes_back_as_it_was(tiny, store, history, environment, error, told, seconds):
    """Every field survives the disk, NaN, both infinities and the sign of zero included."""
    cell = tiny.grid().cells()[0]
    result = result_of(
        cell,
        "failed",
        history=history,
        environment=environment,
        error=error,
        traceback=told,
        duration_s=seconds,
        classes=("a", "b"),
        n_parameters=3,
    )
    store.save(result, None)
    # repr tells NaN from numbers, -0.0 from 0.0 and tuples from lists, which == does not.
    assert repr(store.read(cell)) == repr(result)


def test_a_trace_comes_back_as_it_was(filled, trace):
    """The Parquet file beside the result holds the very numbers."""
    store, _ = filled
    for result in Store.load(store.root).results:
        assert result.trace().to_pandas().equals(trace.to_pandas())


def test_a_study_has_the_grids_order_and_factors(tiny, store, trace):
    """Cells stored in another order are shown in the grid's; those that were not are pending."""
    grid = tiny.grid()
    store.prepare(grid)
    cells = grid.cells()
    for i in (2, 0):
        store.save(result_of(cells[i]), trace)
    study = Store.load(store.root)
    assert [r.id for r in study.results] == [c.id for c in cells]
    assert [r.status for r in study.results] == ["done", "pending", "done", "pending"]
    assert [r.factors for r in study.results] == [c.factors for c in cells]
    assert study.factors == grid.factors
    assert study.grid == grid.source
    assert study.name == "tiny"
    assert study.path == store.root


def replace_in(name, **fields):
    """Damage: other values in a JSON file."""

    def damage(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def cut(name, share):
    """Damage: only the first part of a file is left."""

    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return damage


def overwrite(name, content):
    """Damage: other bytes."""
    return lambda folder: (folder / name).write_bytes(content)


def a_folder_instead(folder):
    """Damage: where a file should be."""
    (folder / "result.json").unlink()
    (folder / "result.json").mkdir()


DAMAGES = {
    "no result": lambda folder: (folder / "result.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no trace": lambda folder: (folder / "trace.parquet").unlink(),
    "half a result": cut("result.json", 0.5),
    "an empty result": cut("result.json", 0),
    "half a config": cut("config.json", 0.5),
    "half a trace": cut("trace.parquet", 0.5),
    "an empty trace": cut("trace.parquet", 0),
    "zeros": overwrite("result.json", bytes(200)),
    "no text": overwrite("result.json", b"\xff\xfe\x80"),
    "a list": overwrite("result.json", b"[]"),
    "nothing in it": overwrite("result.json", b"{}"),
    "another cell": replace_in("result.json", id="somebody"),
    "a newer format": replace_in("result.json", format=99),
    "a format of text": replace_in("result.json", format="new"),
    "an unknown status": replace_in("result.json", status="splendid"),
    "a loss of text": replace_in("result.json", history={"step_loss": ["low"]}),
    "an empty folder": lambda folder: [p.unlink() for p in folder.iterdir()],
    "a folder instead": a_folder_instead,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cell_is_failed_and_alone(filled, damage):
    """One cell's files are spoilt: it is shown as failed, with its place; the others are done."""
    store, grid = filled
    spoilt = grid.cells()[1]
    damage(store.root / spoilt.id)
    results = Store.load(store.root).results
    assert [r.status for r in results] == ["done", "failed", "done", "done"]
    assert str(store.root / spoilt.id) in results[1].error
    assert "\n" not in results[1].error
    assert results[1].factors == spoilt.factors
    assert results[1].trace_path is None


def test_a_damaged_cell_is_replaced_by_the_next_result(filled, trace):
    """Saving over damage mends it."""
    store, grid = filled
    cell = grid.cells()[1]
    a_folder_instead(store.root / cell.id)
    store.save(result_of(cell), trace)
    assert store.read(cell).status == "done"


def test_results_of_cells_that_left_the_grid_stay_and_are_not_shown(tiny, filled):
    """A smaller grid shows fewer cells; the larger one finds all again."""
    store, grid = filled
    smaller = tiny.grid(matrix={"lr": [1e-2], "width": [2, 4]})
    store.prepare(smaller)
    assert len(Store.load(store.root).results) == 2
    store.prepare(grid)
    assert [r.status for r in Store.load(store.root).results] == ["done"] * 4


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_save_cut_short_leaves_no_half_cell(filled, monkeypatch, fails_at):
    """Whichever step of replacing a cell does not happen, what is left is whole or absent."""
    store, grid = filled
    cell = grid.cells()[0]
    calls = []
    real = os.replace

    def replace(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError("pulled the plug")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="plug"):
            store.save(result_of(cell, "failed"), None)
    assert store.read(cell).status == ("done" if fails_at == 1 else "pending")


def test_what_a_killed_run_left_is_not_shown_and_is_removed(filled):
    """Half-written folders are no cells, and the next run sweeps them."""
    store, grid = filled
    half = store.root / f".tmp-{grid.cells()[0].id}-1234"
    shutil.copytree(store.root / grid.cells()[0].id, half)
    assert len(Store.load(store.root).results) == 4
    store.prepare(grid)
    assert not half.exists()


def test_the_files_are_readable_by_others(filled):
    """config.json is the resolved configuration as plain JSON."""
    store, grid = filled
    cell = grid.cells()[0]
    stored = json.loads((store.root / cell.id / "config.json").read_text())
    assert stored == cell.config.model_dump(mode="json")


def test_a_traceback_lies_beside_as_text(tiny, store):
    """What a cell raised can be read with any pager."""
    cell = tiny.grid().cells()[0]
    store.save(result_of(cell, "failed", error="e", traceback="Traceback:\n  here\n"), None)
    assert (store.root / cell.id / "traceback.txt").read_text() == "Traceback:\n  here\n"


def test_a_folder_that_is_no_study_says_what_would_be(tmp_path, filled):
    """Missing, empty and parent folders: one line each, with the folder to give."""
    store, _ = filled
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"empty: holds no study .*give the folder"):
        Store.load(empty)
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; give"):
        Store.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"runs: holds no study .*runs/tiny$"):
        Store.load(store.root.parent)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"format": 99}', b'{"format": 1, "cells": 3}']
)
def test_a_damaged_description_is_named_and_written_anew(tiny, filled, content):
    """A spoilt grid.json: loading names the file; the next run mends it and keeps the results."""
    store, grid = filled
    (store.root / "grid.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"grid\.json: damaged .*run the grid again"):
        Store.load(store.root)
    store.prepare(grid)
    assert [r.status for r in Store.load(store.root).results] == ["done"] * 4


def test_a_folder_of_another_study_is_refused(tiny, filled):
    """Two studies never mix in one folder."""
    store, _ = filled
    with pytest.raises(ConfigError, match="holds the study 'tiny', not 'other'"):
        store.prepare(tiny.grid(name="other"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """A read-only place: one line."""
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        Store(tmp_path / "runs").locked(),
    ):
        pass


def test_a_file_in_the_way_is_named(tmp_path):
    """The folder's name belongs to a file."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), Store(tmp_path / "runs").locked():
        pass


def test_runs_of_an_earlier_version_are_read(tiny):
    """Cells that format 1 wrote keep their ids, their results and their traces."""
    folder = Path(__file__).resolve().parents[1] / "files" / "runs-format1"
    study = Store.load(folder)
    assert [result.status for result in study.results] == ["done"] * 4
    assert {result.id for result in study.results} == {cell.id for cell in tiny.grid().cells()}
    for result in study.results:
        assert len(result.history.epochs) == 2
        assert math.isnan(result.history.epochs[-1].fit_accuracy)
        assert len(result.trace())
