"""What the device stored, turned into the statistics of the table and their histograms."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.recording.buffer import BINS, PLACE, RAW, UNSEEN, Row, on_host
from gradscope.trace.table import RecordedTensor
from gradscope.trace.vocabulary import STATISTICS


def finish(rows: list[Row], columns: list[RecordedTensor]) -> tuple[Tensor, Tensor]:
    """Turn raw rows into the statistics of the table.

    Args:
        rows: from `StatisticsBuffer.rows`.
        columns: the recorded tensors.

    Returns:
        Values, float32 of shape (rows, tensors, len(STATISTICS)), and presence, bool of shape
        (rows, tensors).
    """
    width = len(columns) + 1
    raw = on_host((len(rows), width, len(RAW)), torch.nan)
    numel = on_host((len(rows), width), 1.0)
    scale = on_host((len(rows), width), 1.0)
    present = torch.zeros((len(rows), width), dtype=torch.bool, device="cpu")
    sizes_of = {id(row.numel): torch.tensor(row.numel, device="cpu") for row in rows}
    for i, row in enumerate(rows):
        assert row.raw is not None
        known = min(row.raw.shape[0], width)
        raw[i, :known] = row.raw[:known]
        sizes = sizes_of[id(row.numel)][:width]
        present[i, : len(sizes)] = sizes != UNSEEN
        numel[i, : len(sizes)] = sizes.to(torch.float32).clamp(min=0)
        scale[i, list(row.scaled)] = row.step.loss_scale
    cell = {name: raw[:, :, i] for name, i in PLACE.items()}
    norm = cell["norm"] / scale
    abs_max = cell["abs_max"] / scale
    # The largest magnitude carries NaN and Inf exactly; where a sample missed it, one is. Where it
    # was not taken, it is NaN and the norm tells.
    broken = torch.where(abs_max.isnan(), norm.isnan(), ~abs_max.isfinite())
    counted = torch.where(norm.isfinite() & cell["nonfinite"].isnan(), 0.0, cell["nonfinite"])
    nonfinite = torch.where(broken & (counted == 0), 1 / numel, counted)
    columns_of = {
        "norm": norm,
        "rms": norm / numel.sqrt(),
        "abs_max": abs_max,
        "zero_fraction": cell["zero"],
        "nonfinite_fraction": nonfinite,
        "unclipped_norm": cell["unclipped"] / scale,
        "weight_norm": cell["weight_norm"],
        "update_ratio": cell["update"] / cell["weight_norm"],
        "saturated_fraction": cell["saturated"],
        "dead_fraction": cell["dead"],
        "variation": cell["variation"],
        "carried_norm": cell["carried"] / scale,
        "unchanged_fraction": cell["unchanged"],
    }
    values = torch.stack([columns_of[name] for name in STATISTICS], dim=2)
    values[~present] = torch.nan
    return values[:, 1:], present[:, 1:]


def histograms(rows: list[Row], n_columns: int) -> Tensor | None:
    """Histograms of all rows, int32 of shape (rows, tensors, bins), or None without any."""
    if not any(row.histogram is not None for row in rows):
        return None
    shape = (len(rows), n_columns + 1, BINS)
    counts = torch.zeros(shape, dtype=torch.int32, device="cpu")
    for i, row in enumerate(rows):
        if row.histogram is not None:
            counts[i, : row.histogram.shape[0]] = row.histogram
    return counts[:, 1:]
