"""The page: one HTML file from the tables, the figures and the sentences of a study."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import jinja2
from markupsafe import Markup

from gradscope.report import claims, embed, listing, sentences, view
from gradscope.report.chart import Chart, Panel
from gradscope.report.figures.common import Drawing
from gradscope.study import labels, match, match_cells, merge
from gradscope.study.tables import Tables

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("flow", "Gradient flow", ("map", "profile", "chi", "ratio", "heat")),
    (
        "layers",
        "Layers and updates",
        (
            *("updates", "update-steps", "weight-norms", "activations", "dead", "zero"),
            *("saturated", "grad-norm", "clipping", "loss-scale", "histogram"),
        ),
    ),
    ("effects", "What made the difference", ("effects", "interactions")),
    (
        "training",
        "Training",
        (
            *("loss", "logged", "val-loss", "accuracy", "accuracy-epoch", "gap", "classes"),
            *("pooled", "confusion"),
        ),
    ),
)
"""Anchor, title and charts of the sections that hold figures; ``logged`` stands for all of them."""


def render(drawing: Drawing, charts: Mapping[str, Chart], table_files: Mapping[str, str]) -> str:
    """Write the page as text.

    Args:
        drawing: tables, effects and how variants are told apart.
        charts: from `figures.all_charts`.
        table_files: name of a table -> its file beside the page, relative.

    Returns:
        HTML that needs nothing but itself.
    """
    tables = drawing.tables
    script, plotly = embed.template_text("page.js"), embed.plotly_source()
    style = embed.template_text("page.css")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradscope.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(panel_variants=panel_variants, number=labels.number)
    page = environment.get_template("page.html.j2").render(
        title=title(tables),
        kind=tables.kind,
        csp=embed.policy([script, plotly], [style, ""]),
        style=Markup(style),  # noqa: S704  # our own file
        script=Markup(script),  # noqa: S704  # our own file
        plotly=embed.packed(plotly),
        study=embed.embedded(embed.study_data(tables, drawing.scheme, charts)),
        packed_tables=embed.packed(
            json.dumps(embed.table_data(tables, table_files), allow_nan=False)
        ),
        sections=[(a, t, _of_section(charts, keys)) for a, t, keys in SECTIONS],
        chart_data={key: embed.embedded(embed.chart_data(chart)) for key, chart in charts.items()},
        description=view.description(tables),
        opening=sentences.opening(tables, drawing.effects),
        completeness=sentences.completeness(tables),
        certainty=sentences.certainty(tables),
        effect_sentences=claims.effect_sentences(drawing.effects),
        badges=view.badges(tables),
        listings=listing.of_trace(tables) if tables.kind == "trace" else [],
        side_by_side=listing.side_by_side(tables),
        compared=compared(tables),
        columns=listing.columns(tables),
        rows=listing.rows(tables),
        variant_columns=listing.variant_columns(tables) if tables.n_seeds > 1 else [],
        variant_rows=listing.variant_rows(tables),
        unfinished=view.unfinished(tables),
        effect_rows=view.effect_rows(drawing.effects),
        findings=view.findings(tables),
        provenance=view.provenance(tables),
        settings=view.settings(tables),
        table_files=table_files,
        factors=tables.factors,
        scheme=drawing.scheme,
        version=metadata.version("gradscope-torch"),
        written=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return str(page)


def title(tables: Tables) -> str:
    """What stands on top of the page."""
    if tables.kind == "trace":
        return f"Gradient flow of {tables.study.name}"
    return tables.study.name


def compared(tables: Tables) -> tuple[str, ...]:
    """What changed from before to after; nothing where nothing is compared."""
    matched = tables.frames.get("matched")
    if matched is None:
        return ()
    if tables.kind == "traces":
        return match.layer_sentences(tables, (0, -1), matched)
    return match_cells.cell_sentences(tables, merge.STUDY_FACTOR, matched)


def _of_section(charts: Mapping[str, Chart], keys: Sequence[str]) -> list[Chart]:
    """Charts of a section in its order."""
    return [
        chart
        for key in keys
        for name, chart in charts.items()
        if name == key or (name.startswith(f"{key}-") and key == "logged")
    ]


def panel_variants(panel: Panel) -> str:
    """Indices of the variants that a panel draws, with spaces; empty where it draws rows."""
    metas = [t.get("meta", {}) for t in panel.data]
    found = {m["v"] for m in metas if "v" in m} | {v for m in metas for v in m.get("pool", ())}
    return " ".join(str(v) for v in sorted(found))


def write(text: str, path: Path) -> None:
    """Write the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
