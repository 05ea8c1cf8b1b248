"""Heat maps: one row per variant in a single panel, or one panel per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.report.chart import Chart, Panel
from gradscope.report.figures.common import margins, plain, row_axis, row_labels, shortened
from gradscope.study.measures import Floats, evenly
from gradscope.study.tables import Variant

SEQUENTIAL = "Viridis"
SHARES = "Blues"
DIVERGING = [[0.0, "#0072B2"], [0.5, "#F4F4F4"], [1.0, "#D55E00"]]
"""Vanishing is blue, exploding is vermilion; the page swaps the middle on a dark ground."""


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map stand for; drawn once above its panels."""

    kind: str
    """``sequential``, ``shares`` or ``diverging``."""
    low: float
    high: float
    ends: tuple[str, str]
    """What is written at both ends."""

    @property
    def trace(self) -> dict[str, Any]:
        """The settings of a plotly heat map."""
        colours = {"sequential": SEQUENTIAL, "shares": SHARES, "diverging": DIVERGING}
        return {
            "type": "heatmap",
            "zmin": self.low,
            "zmax": self.high,
            "colorscale": colours[self.kind],
            "colorbar": {"thickness": 12, "outlinewidth": 0},
        }

    @property
    def option(self) -> list[str]:
        """For the page: kind and ends."""
        return [self.kind, *self.ends]


SHARE = Scale("shares", 0.0, 1.0, ("0 %", "100 %"))


def row_heat(
    chart: Chart,
    rows: Sequence[tuple[Variant, Floats]],
    x: Any,
    scale: Scale,
    *,
    hover: str,
    x_axis: dict[str, Any],
    numbers: str = "",
) -> Chart:
    """A heat map with one row per variant, which a filter can take rows out of.

    Args:
        chart: key, title and caption.
        rows: variants with their values, from the top.
        x: places or names along a row.
        scale: what the colours stand for.
        hover: plotly's template; ``%{text}`` is the variant.
        x_axis: title and ticks.
        numbers: plotly's format of the value written into each cell; none where empty.
    """
    heat = scale.trace | {
        "z": np.array([values for _, values in rows], dtype=np.float32),
        "x": x,
        "y": list(range(len(rows))),
        "text": [plain(variant.label) for variant, _ in rows],
        "texttemplate": numbers,
        "hovertemplate": hover,
        "meta": {**row_labels(rows), scale.kind: True, "per_row": True},
    }
    top, bottom = (60, 8) if x_axis.get("side") == "top" else (8, 48)
    layout = {"xaxis": x_axis, "yaxis": row_axis(rows), "margin": margins(8, 8, top, bottom)}
    described = f"Heat map with one row for each of {len(rows)} variants"
    panel = Panel("", (heat,), layout, described)
    return Chart(
        chart.key, chart.title, chart.caption, (panel,), table=chart.table, wide=True,
        options={"rows": True, "scale": scale.option},
    )  # fmt: skip


def layer_panel(
    title: str,
    variant: Variant,
    values: Floats,
    x: Any,
    *,
    names: tuple[Sequence[str], Sequence[str]],
    scale: Scale,
    hover: str,
    x_axis: dict[str, Any],
) -> Panel:
    """One panel with a row per layer, the input on top.

    Args:
        title: over the panel.
        variant: whose it is.
        values: shape (layers, places along x).
        x: places along a row.
        names: of the layers, for hovering and for the axis.
        scale: what the colours stand for.
        hover: plotly's template; ``%{text}`` is the layer.
        x_axis: title and ticks.
    """
    whole, short = names
    at = evenly(len(whole), 6)
    heat = scale.trace | {
        "z": values.astype(np.float32),
        "x": x,
        "y": np.arange(len(whole), dtype=np.float32),
        "text": [plain(name) for name in whole],
        "showscale": False,
        "hovertemplate": hover,
        "meta": {"v": variant.index, scale.kind: True, "per_row": True},
    }
    ticks = [plain(shortened(short[i], 14)) for i in at]
    layout = {
        "xaxis": x_axis,
        "yaxis": {"autorange": "reversed", "automargin": True, "tickvals": at, "ticktext": ticks},
        "margin": margins(92, 8, 4, 40),
    }
    words = f"Heat map of {len(whole)} layers{': ' if title else ''}{title}"
    return Panel(title, (heat,), layout, words)
