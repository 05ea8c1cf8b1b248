"""The page: one HTML file from the tables, the figures and the sentences of a study."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jinja2
from markupsafe import Markup

from gradscope.report import embed, sentences, view
from gradscope.report.chart import Chart, Panel
from gradscope.report.figures.common import Drawing
from gradscope.study import labels

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("flow", "Gradient flow", ("map", "profile", "chi", "ratio", "heat")),
    ("effects", "What made the difference", ("effects", "interactions")),
    (
        "training",
        "Training",
        ("loss", "val-loss", "accuracy", "accuracy-epoch", "gap", "classes", "confusion"),
    ),
)
"""Anchor, title and charts of the sections that hold figures."""


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
        title=tables.study.name,
        csp=embed.policy([script, plotly], [style, ""]),
        style=Markup(style),  # noqa: S704  # our own file
        script=Markup(script),  # noqa: S704  # our own file
        plotly=embed.packed(plotly),
        study=embed.embedded(embed.study_data(tables)),
        packed_tables=embed.packed(
            json.dumps(embed.table_data(tables, table_files), allow_nan=False)
        ),
        sections=[(a, t, [charts[k] for k in keys if k in charts]) for a, t, keys in SECTIONS],
        chart_data={key: embed.embedded(embed.chart_data(chart)) for key, chart in charts.items()},
        opening=sentences.opening(tables, drawing.effects),
        completeness=sentences.completeness(tables),
        certainty=sentences.certainty(tables),
        effect_sentences=sentences.effect_sentences(drawing.effects),
        badges=view.badges(tables),
        columns=view.columns(tables),
        rows=view.rows(tables),
        unfinished=view.unfinished(tables),
        effect_rows=view.effect_rows(drawing.effects),
        findings=view.findings(tables),
        provenance=view.provenance(tables),
        settings=view.settings(tables),
        table_files=table_files,
        factors=tables.factors,
        version=metadata.version("gradscope-torch"),
        written=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return str(page)


def panel_variants(panel: Panel) -> str:
    """Indices of the variants that a panel draws, with spaces; empty where it draws rows."""
    found = {t["meta"]["v"] for t in panel.data if "v" in t.get("meta", ())}
    return " ".join(str(v) for v in sorted(found))


def write(text: str, path: Path) -> None:
    """Write the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
