"""What is embedded in the page, and what makes it safe: escaped data and hashed scripts."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from gradscope.report.chart import DASHES, PALETTE, PALETTE_DARK, SYMBOLS, Chart
from gradscope.report.scheme import Scheme
from gradscope.study.metrics import METRICS
from gradscope.study.tables import Tables

EMBED_LIMIT = 3_000_000
"""Values up to which a table is embedded for saving; larger ones only stand beside the page."""


def embedded(data: Any) -> Markup:
    """JSON for a ``<script type="application/json">``: no character in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=_plain_json)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # escaped in the line above


def _plain_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def packed(text: str) -> str:
    """Compress with gzip and base64, the same bytes for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A Content-Security-Policy under which nothing runs but these scripts and nothing is fetched.

    plotly sets style attributes and fills empty style elements; attributes can run no code.
    """
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(_hash(s) for s in scripts),
        "style-src-elem": " ".join(_hash(s) for s in styles),
        "style-src-attr": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.cache
def plotly_source() -> str:
    """The bundle of plotly, without its style sheet for maps, which the policy forbids."""
    from plotly.offline import get_plotlyjs

    literal = r"'(?:[^'\\]|\\.)*'"
    return re.sub(rf"(\.textContent=)(?='\.maplibregl){literal}", r"\1''", str(get_plotlyjs()))


def template_text(name: str) -> str:
    """A file of the templates folder."""
    return resources.files("gradscope.report").joinpath("templates", name).read_text("utf-8")


def study_data(tables: Tables, scheme: Scheme, charts: Mapping[str, Chart]) -> dict[str, Any]:
    """What filters and legends work on, so that no figure is read before it is drawn."""
    of = tables.variant_of
    rows = tables.cell_rows
    return {
        "factors": [{"name": f.name, "levels": f.levels} for f in tables.factors],
        "variants": [{"label": v.label, "levels": v.levels} for v in tables.variants],
        "noun": "runs" if tables.kind == "traces" else "cells",
        "cells": [
            {
                "v": of[i],
                "seed": row["seed"],
                "status": row["status"],
                "verdict": row["verdict"],
                **{m.key: finite(m.of(row)) for m in METRICS},
            }
            for i, row in enumerate(rows)
        ],
        "palette": {"light": PALETTE, "dark": PALETTE_DARK},
        "dashes": DASHES,
        "symbols": SYMBOLS,
        "legends": {
            key: [vars(k) for k in chart.legend] for key, chart in charts.items() if chart.legend
        },
        "scheme": {"colour": scheme.colour_by, "dash": scheme.dash_by},
    }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return float(value) if math.isfinite(value) else None


def chart_data(chart: Chart) -> dict[str, Any]:
    """The figures of one chart as the script draws them; names of points stand once."""
    names: dict[tuple[str, ...], int] = {}
    panels = []
    for panel in chart.panels:
        data = [
            {**trace, "text": names.setdefault(tuple(trace["text"]), len(names))}
            if trace.get("meta", {}).get("styled") and trace.get("text")
            else trace
            for trace in panel.data
        ]
        panels.append(_jsonable({"title": panel.title, "data": data, "layout": panel.layout}))
    return {
        "panels": panels,
        "names": list(names),
        "lines": chart.lines,
        "options": chart.options,
    }


def _jsonable(value: Any) -> Any:
    """Arrays as plotly packs them, other numbers at six digits, NaN as null."""
    if isinstance(value, np.ndarray):
        return _packed_array(value) if value.dtype == np.float32 else _jsonable(value.tolist())
    if isinstance(value, dict):
        return value if "bdata" in value else {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _packed_array(values: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, str]:
    packed = {"dtype": "f4", "bdata": base64.b64encode(values.tobytes()).decode()}
    return packed | ({"shape": ", ".join(map(str, values.shape))} if values.ndim > 1 else {})


def table_data(tables: Tables, files: Mapping[str, str]) -> dict[str, Any]:
    """Tables by columns; texts as codes into their distinct values."""
    found: dict[str, Any] = {}
    for name, frame in tables.published.items():
        if frame.size > EMBED_LIMIT:
            found[name] = {"file": files.get(name, "")}
            continue
        found[name] = {"columns": [_column_data(frame[c], str(c)) for c in frame.columns]}
    return found


def _column_data(column: pd.Series[Any], name: str) -> dict[str, Any]:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = [_short_number(v) for v in column.tolist()]
        return {"name": name, "values": values}
    codes, levels = pd.factorize(column.astype(object).map(str))
    return {"name": name, "levels": [str(v) for v in levels], "codes": codes.tolist()}


def _short_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
