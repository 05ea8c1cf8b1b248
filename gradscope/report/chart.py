"""Chart: one figure of the report, as a set of plotly panels that share a legend and a caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#997700", "#56B4E9", "#CC6677", "#555555")
"""Safe for colour-blind readers (after Okabe & Ito, and Tol), each 3:1 on white."""

PALETTE_DARK = (
    "#56B4E9", "#FF8C42", "#2DC99A", "#E29AD6", "#E6C229", "#8FD0FF", "#FF9DA9", "#BBBBBB",
)  # fmt: skip
"""The same hues for a dark page, at the same places."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")


@dataclass(frozen=True)
class Key:
    """One entry of a legend; colour is never alone: dash or symbol goes with it."""

    label: str
    colour: int = 0
    """Index into the palette; -1 for the colour of text."""
    dash: str = "solid"
    symbol: str = ""
    hides: dict[str, Any] = field(default_factory=dict)
    """What a click on it hides: ``{"f": factor, "l": level}`` or ``{"k": kind of trace}``."""


@dataclass(frozen=True)
class Panel:
    """One plotly figure of a chart.

    Kept as plain dicts, which are drawn a hundred times faster than objects that check themselves.
    Each trace says in ``meta`` which variant it draws, so that a filter can hide it: ``{"v":
    index}`` for a whole trace, ``{"rows": [index, ...]}`` for a heat map or marks with one row per
    variant, along y. ``{"c": index}`` is the colour's place in the palette, ``{"k": name}`` the
    kind of trace that a legend can hide, ``"styled"`` says that colour, dash and symbol tell
    variants apart.
    """

    title: str
    data: tuple[dict[str, Any], ...]
    """plotly traces."""
    layout: dict[str, Any]
    description: str = ""
    """What a reader who cannot see it is told."""

    @property
    def figure(self) -> go.Figure:
        """The panel as a plotly figure of its own."""
        import plotly.graph_objects as go

        return go.Figure([_spelt_out(trace) for trace in self.data], self.layout)


def _spelt_out(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace with what the page repeats itself: the text of each cell, and powers of ten."""
    if trace.get("type") != "heatmap" or not trace["meta"].get("per_row"):
        return trace
    columns = len(trace["z"][0]) if len(trace["z"]) else 0
    spelt = {**trace, "text": [[name] * columns for name in trace["text"]]}
    if "customdata" in trace["hovertemplate"]:
        spelt["customdata"] = 10.0 ** trace["z"]
    return spelt


@dataclass(frozen=True)
class Chart:
    """One figure of the report; shows itself in a notebook."""

    key: str
    """Short name, unique in the report."""
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[Key, ...] = ()
    table: str = ""
    """The table that it was drawn from."""
    notes: tuple[str, ...] = ()
    """What was left out or thinned."""
    wide: bool = False
    """One panel over the whole width rather than small multiples."""
    most: int = 24
    """Panels shown at once; the rest on demand."""
    lines: int = 0
    """Variants drawn at most in one panel, evenly chosen among those that the filter leaves."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further settings that the page reads."""

    @property
    def figures(self) -> tuple[go.Figure, ...]:
        """The plotly figures, one per panel."""
        return tuple(panel.figure for panel in self.panels)

    def _repr_html_(self) -> str:
        """All panels below one another; plotly is embedded once."""
        import html

        parts = [f"<h3>{html.escape(self.title)}</h3><p>{html.escape(self.caption)}</p>"]
        for i, panel in enumerate(self.panels[: self.most]):
            title = {"text": html.escape(panel.title, quote=False)}
            figure = panel.figure.update_layout(title=title, margin={"t": 40})
            parts.append(figure.to_html(full_html=False, include_plotlyjs=i == 0))
        return "".join(parts)
