"""The Parquet file of a trace: written whole or not at all, read back with its header."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradscope.errors import TraceError, one_line
from gradscope.trace.header import structure_of
from gradscope.trace.table import Prediction, RecordedStep, RecordedTensor, Trace
from gradscope.trace.vocabulary import STATISTICS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 2
"""2 added what the optimizer holds, the side of the loss, three statistics and what was logged."""

_METADATA_KEY = b"gradscope"


def write(trace: Trace, path: Path, temporary: Path) -> None:
    """Write a trace beside its place, then put it there; no operation of torch is called.

    Args:
        trace: what is written.
        path: where to.
        temporary: a file in the same folder that nobody else uses; it is gone afterwards.

    Raises:
        OSError: the folder is missing or full, or may not be written to; what was there stays.
    """
    import pyarrow.parquet as pq

    try:
        pq.write_table(_table(trace), temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Trace:
    """Read a trace that `write` wrote.

    Raises:
        TraceError: the file is missing, is no Parquet file of gradscope, or of a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise TraceError(f"{path}: no such file; give a Parquet file that Trace.save() wrote")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(
            f"{path}: not a readable Parquet file ({one_line(error, 200)}); "
            "give a file that Trace.save() wrote"
        ) from error
    raw = (table.schema.metadata or {}).get(_METADATA_KEY)
    if raw is None:
        raise TraceError(
            f"{path}: a Parquet file, but not of gradscope; give a file that Trace.save() wrote"
        )
    header = json.loads(raw)
    if header["schema_version"] > SCHEMA_VERSION:
        raise TraceError(
            f"{path}: schema version {header['schema_version']} is newer than this gradscope "
            f"reads ({SCHEMA_VERSION}); upgrade gradscope"
        )
    return _from_table(table.to_pandas(), header)


def _table(trace: Trace) -> pa.Table:
    """The columns of `Trace.to_pandas`, without a Python object for each row."""
    import numpy as np
    import pyarrow as pa

    rows, columns = trace.present.numpy().nonzero()
    measured = trace.values.numpy()[rows, columns]

    def of_steps(values: list[Any], kind: str) -> Any:
        return pa.array(np.asarray(values, dtype=kind)[rows], from_pandas=True)

    def of_tensors(name: str) -> Any:
        values = [getattr(tensor, name) for tensor in trace.tensors]
        if name not in {"kind", "module", "parameter"}:
            return pa.array(np.asarray(values, dtype="int64")[columns])
        known = sorted(set(values))
        place = {value: i for i, value in enumerate(known)}
        codes = np.asarray([place[value] for value in values], dtype="int32")[columns]
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(known, pa.string()))

    table: dict[str, Any] = {
        "step": of_steps([s.step for s in trace.steps], "int64"),
        "epoch": of_steps([s.epoch for s in trace.steps], "int64"),
    }
    for name in ("kind", "module", "parameter", "call", "output", "order"):
        table[name] = of_tensors(name)
    for i, name in enumerate(STATISTICS):
        table[name] = pa.array(measured[:, i], from_pandas=True)
    table["loss_scale"] = of_steps([s.loss_scale for s in trace.steps], "float64")
    table["skipped"] = of_steps([s.skipped for s in trace.steps], "bool")
    losses = [math.nan if s.loss is None else s.loss for s in trace.steps]
    table["loss"] = of_steps(losses, "float64")
    if trace.histograms is not None:
        counts = trace.histograms.numpy()[rows, columns]
        starts = np.arange(len(rows) + 1, dtype="int32") * counts.shape[1]
        table["log2_histogram"] = pa.ListArray.from_arrays(starts, counts.ravel())
    header = json.dumps(_header(trace)).encode()
    return pa.table(table).replace_schema_metadata({_METADATA_KEY: header})


def _header(trace: Trace) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tensors": [dataclasses.asdict(t) for t in trace.tensors],
        "steps": [dataclasses.asdict(s) for s in trace.steps],
        "structure": dataclasses.asdict(trace.structure),
        "predictions": [dataclasses.asdict(p) for p in trace.predictions],
        "logged": {name: list(series) for name, series in trace.logged.items()},
        "metadata": trace.metadata,
    }


def _from_table(table: pd.DataFrame, header: dict[str, Any]) -> Trace:
    tensors = tuple(RecordedTensor(**{**t, "shape": tuple(t["shape"])}) for t in header["tensors"])
    steps = tuple(RecordedStep(**s) for s in header["steps"])
    column_of = {_identity(t): i for i, t in enumerate(tensors)}
    row_of = {s.step: i for i, s in enumerate(steps)}
    with torch.device("cpu"):  # whatever the default of the process
        columns = torch.tensor([column_of[key] for key in _identities(table)], dtype=torch.long)
        rows = torch.tensor([row_of[step] for step in table["step"]], dtype=torch.long)
        values = torch.full(
            (len(steps), len(tensors), len(STATISTICS)), math.nan, dtype=torch.float32
        )
        present = torch.zeros((len(steps), len(tensors)), dtype=torch.bool)
        known = table.reindex(columns=list(STATISTICS))  # an older file lacks some
        measured = known.to_numpy("float32", copy=True)
        values[rows, columns] = torch.from_numpy(measured)
        present[rows, columns] = True
        histograms = None
        if "log2_histogram" in table:
            counts = torch.tensor([list(h) for h in table["log2_histogram"]], dtype=torch.int32)
            histograms = torch.zeros((len(steps), len(tensors), counts.shape[1]), dtype=torch.int32)
            histograms[rows, columns] = counts
    return Trace(
        tensors=tensors,
        steps=steps,
        values=values,
        present=present,
        structure=structure_of(header["structure"]),
        predictions=tuple(Prediction(**p) for p in header["predictions"]),
        histograms=histograms,
        logged={
            name: tuple((int(step), float(value)) for step, value in series)
            for name, series in header.get("logged", {}).items()
        },
        metadata=header["metadata"],
    )


def _identity(tensor: RecordedTensor) -> tuple[str, str, str, int, int]:
    return (tensor.kind, tensor.module, tensor.parameter, tensor.call, tensor.output)


def _identities(table: pd.DataFrame) -> Iterator[tuple[str, str, str, int, int]]:
    columns = (table[name] for name in ("kind", "module", "parameter", "call", "output"))
    yield from zip(*columns, strict=True)
