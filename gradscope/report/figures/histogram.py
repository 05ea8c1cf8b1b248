"""Histograms of the gradients, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.report.chart import Chart
from gradscope.report.figures.common import Drawing, cell_title, short_names, titled
from gradscope.report.figures.heat import Scale, layer_panel

MOST_HISTOGRAMS = 64
"""Cells whose histograms are drawn; each takes as much room as a heat map."""


def histograms(drawing: Drawing) -> Chart | None:
    """Histogram of log2|gradient| of each layer's weights, one panel per cell."""
    told = [(v, r) for v, r in drawing.cells() if r.measured.get("histogram")]
    if not told:
        return None
    scale = Scale("sequential", 0.0, 0.3, ("0 %", "30 % of the layer's weights"))
    panels = [
        layer_panel(
            cell_title(drawing, variant, reading),
            variant,
            shares,
            bins,
            names=(names, short_names(names)),
            scale=scale,
            hover="%{text}<br>|g| from 2^%{x}: %{z:.1%}<extra></extra>",
            x_axis={**titled("log2 |gradient|"), "nticks": 6},
        )
        for variant, reading in told[:MOST_HISTOGRAMS]
        for names, bins, shares in [_shares(reading.measured["histogram"])]
    ]
    notes = (f"The first {MOST_HISTOGRAMS} of {len(told)} cells.",)
    return Chart(
        key="histogram",
        title="Histograms of the gradients",
        caption=(
            "How the sizes of the gradients of each layer's weights are spread, over all recorded "
            "steps, in bins of a factor of two; zeros are left out."
        ),
        panels=tuple(panels),
        table="histogram",
        notes=notes if len(told) > MOST_HISTOGRAMS else (),
        wide=len(panels) == 1,
        options={"scale": scale.option},
    )


def _shares(told: dict[str, Sequence[Any]]) -> tuple[list[str], Any, Any]:
    """Layers, lower ends of the bins, and the share of each layer's counts in each bin."""
    names = list(dict.fromkeys(told["layer"]))
    bins = np.unique(np.asarray(told["log2"], dtype=np.float32))
    counts = np.asarray(told["count"], dtype=float).reshape(len(names), len(bins))
    totals = counts.sum(axis=1, keepdims=True)
    return names, bins, np.where(counts > 0, counts / totals.clip(1), np.nan)
