"""Trace: the dense arrays, the long table and the Parquet file say the same."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import TraceError
from gradscope.trace.structure import (
    LossSide,
    ModuleInfo,
    ParameterGroup,
    Softmax,
    Structure,
    Summary,
)
from gradscope.trace.table import RecordedStep, Trace

FILES = Path(__file__).resolve().parents[1] / "files"
"""Written by earlier versions."""


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Three recorded steps of a small network with batch norm, NaN in the last step."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    with gradscope.watch(plain, optimizer, every=1, histograms=True) as scope:
        for i in range(3):
            scope.epoch = i
            optimizer.zero_grad()
            (plain(torch.randn(2, 1, 4, 4)).sum() * (math.nan if i == 2 else 1)).backward()
            optimizer.step()
    return scope.trace()


def test_length_is_the_number_of_rows(trace):
    """len(trace) counts the rows of the table."""
    assert len(trace) == len(trace.to_pandas()) == int(trace.present.sum())


def test_columns(trace):
    """The table has the columns that users are promised, in this order."""
    columns = list(trace.to_pandas().columns)
    promised = [
        "step",
        "epoch",
        "kind",
        "module",
        "parameter",
        "order",
        "norm",
        "rms",
        "abs_max",
        "zero_fraction",
        "nonfinite_fraction",
        "weight_norm",
        "update_ratio",
        "loss_scale",
    ]
    assert [c for c in columns if c in promised] == promised


def test_save_and_load_round_trip(trace, tmp_path):
    """Everything survives the file: numbers, NaN, order, structure, histograms, metadata."""
    path = trace.save(tmp_path / "deep" / "run.parquet")
    again = Trace.load(path)
    assert torch.equal(again.values.nan_to_num(7), trace.values.nan_to_num(7))
    assert torch.equal(again.present, trace.present)
    assert torch.equal(again.histograms, trace.histograms)
    for field in ("tensors", "steps", "structure", "predictions", "metadata"):
        # NaN is not equal to itself, its text is.
        assert repr(getattr(again, field)) == repr(getattr(trace, field))
    pd.testing.assert_frame_equal(again.to_pandas(), trace.to_pandas())
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.parquet"]


def test_any_parquet_reader_sees_the_table(trace, tmp_path):
    """The file is plain Parquet: another reader gets the same numbers."""
    frame = pq.read_table(trace.save(tmp_path / "t.parquet")).to_pandas()
    assert frame["norm"].sum() == pytest.approx(trace.to_pandas()["norm"].sum())


def test_nan_is_kept(trace):
    """The step whose loss was NaN is in the table, with NaN norms counted as non-finite."""
    last = trace.to_pandas().query("step == 2 and kind == 'weight'")
    assert last["norm"].isna().any()
    assert (last.loc[last["norm"].isna(), "nonfinite_fraction"] > 0).all()
    assert trace.first_nonfinite().step == 2


def test_series(trace):
    """series() gives one statistic of one kind in execution order."""
    tensors, norms = trace.series("activation", "norm")
    assert [t.module for t in tensors] == ["0", "1", "2", "3", "4"]
    frame = trace.to_pandas().query("kind == 'activation' and step == 1")
    assert norms[1].tolist() == pytest.approx(frame["norm"].tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.series("weights", "norm"), "did you mean 'weight'"),
        (lambda t: t.series("weight", "nrm"), "did you mean 'norm'"),
        (lambda t: dataclasses.replace(t, steps=(*t.steps, RecordedStep(9))), "do not fit"),
    ],
)
def test_wrong_questions(trace, call, message):
    """Unknown names give the nearest valid one; arrays that do not fit are refused."""
    with pytest.raises(TraceError, match=message):
        call(trace)


def test_files_that_are_no_traces(tmp_path):
    """A missing file, a text file and a Parquet file of somebody else are told apart."""
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    for path, message in (
        (tmp_path / "none.parquet", "no such file"),
        (text, "not a readable Parquet"),
        (other, "not of gradscope"),
    ):
        with pytest.raises(TraceError, match=message):
            Trace.load(path)


def test_a_failed_save_leaves_nothing(trace, tmp_path, monkeypatch):
    """When writing breaks off, neither a half file nor a temporary one stays."""

    def broken(table, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        trace.save(tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_first_schema_is_read():
    """A file that version 1 of the schema wrote: the same norms, NaN for what it did not know."""
    trace = Trace.load(FILES / "run-schema1.parquet")
    assert len(trace) == 96
    sums = json.loads((FILES / "run-schema1.json").read_text())  # by pandas, when it was written
    for kind, expected in sums.items():
        _, norms = trace.series(kind, "norm")
        assert float(norms.double().nansum()) == pytest.approx(expected)
    for statistic in ("variation", "carried_norm", "unchanged_fraction"):
        assert trace.series("weight", statistic)[1].isnan().all()
    assert trace.logged == {}
    assert trace.structure.groups == ()
    assert trace.structure.loss is None
    assert all(step.loss is None for step in trace.steps)
    assert gradscope.diagnose(trace).findings


def test_everything_a_trace_can_know_survives_the_file(tmp_path):
    """Facts about optimizer, loss, inputs and what was logged come back equal."""
    made = Structure(
        modules=(
            ModuleInfo("a", "Custom", 0, 1, "a", takes="integer", settings={"p": 0.5},
                       operations=("ExpBackward0",),
                       softmax=Softmax(1, (8, 4), 0.5, of_products=True)),
            ModuleInfo("b", "Linear", 1, 1, "b", mode="checkpoint"),
        ),
        unread=("a",),
        strangers=("3 x Linear.weight (64, 64)",),
        groups=(ParameterGroup("Adam", ("a.weight",), 2, {"lr": 1e-3, "weight_decay": 0.0}),),
        inputs=(Summary("input", (8, 3), "float32", 0.1, 1.0, -3.0, 3.5, 0.9),),
        loss=LossSide(("LogSoftmaxBackward0", "NllLossBackward0"),
                      (Summary("target", (8,), "int64", 2.0, 1.0, 0.0, 4.0, 1.0),),
                      constant=1.2, outputs=1),
    )  # fmt: skip
    trace = dataclasses.replace(
        Trace.load(FILES / "run-schema1.parquet"),
        structure=made,
        logged={"loss": ((0, 1.5), (2, 1.0)), "lr/0": ((0, 1e-3),)},
    )
    read = Trace.load(trace.save(tmp_path / "run.parquet"))
    assert read.structure == made
    assert read.logged == trace.logged
