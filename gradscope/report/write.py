"""One HTML file from a study or a trace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import ConfigError
from gradscope.study.merge import Source
from gradscope.trace.table import Trace

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from gradscope.report.chart import Chart
    from gradscope.report.figures.common import Drawing

__all__ = ["charts", "figures", "load", "write_report"]


def write_report(source: Source, path: str | os.PathLike[str]) -> Path:
    """Write one offline HTML file, and the tables it was drawn from into a folder beside it.

    Args:
        source: a trace or a study; or several traces, as a list or by name, or several studies:
            they are laid side by side, traces matched layer by layer, studies cell by cell.
        path: where to; ``flow.html`` puts its tables into ``flow.tables``. Missing folders are
            made.

    Returns:
        The path.

    Raises:
        ConfigError: there is no cell to draw, or the path is a folder.
    """
    return write_with_opening(source, path)[0]


def write_with_opening(
    source: Source, path: str | os.PathLike[str]
) -> tuple[Path, tuple[str, ...]]:
    """As `write_report`; the sentences that the report opens with come along."""
    from gradscope.report import page, sentences
    from gradscope.report.figures import gallery

    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file, for example report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = _prepare(source)
    folder = path.with_suffix(".tables")
    files = drawn.tables.write(folder)
    beside = {name: f"{folder.name}/{file.name}" for name, file in files.items()}
    page.write(page.render(drawn, gallery.all_charts(drawn), beside), path)
    return path, sentences.opening(drawn.tables, drawn.effects)


def load(paths: Sequence[Path]) -> Source:
    """What `write_report` draws, from paths.

    Args:
        paths: folders that a grid was run into, or Parquet files of traces.

    Returns:
        A trace, a study, or several of one of them; several traces under the names of their files.

    Raises:
        GradscopeError: a path holds neither.
    """
    from gradscope.ablation.store import Store

    files = [path for path in paths if path.is_file()]
    if len(files) == len(paths) == 1:
        return Trace.load(paths[0])
    if len(files) == len(paths):
        return dict(zip(_file_names(paths), map(Trace.load, paths), strict=True))
    for path in paths:
        if path.is_file():
            raise ConfigError(f"{path}: a trace, beside folders of runs; compare like with like")
        if not path.is_dir():
            raise ConfigError(
                f"{path}: no such folder; give the folder that run-grid wrote, for example "
                "runs/hw5, or a Parquet file of a trace"
            )
    studies = [Store.load(path) for path in paths]
    return studies[0] if len(studies) == 1 else studies


def _file_names(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: their names, with folders or numbers where these are equal."""
    for names in ([p.stem for p in paths], [str(p.with_suffix("")) for p in paths]):
        if len(set(names)) == len(names):
            return names
    return [f"{path.stem} ({i + 1})" for i, path in enumerate(paths)]


def charts(source: Source) -> dict[str, Chart]:
    """The figures of a report one by one, as plotly objects that show themselves in a notebook.

    Args:
        source: as for `write_report`.

    Returns:
        Key of the chart -> the chart; ``charts(study)["profile"].figures`` are plotly figures.
    """
    from gradscope.report.figures import gallery

    return gallery.all_charts(_prepare(source))


def figures(source: Source) -> dict[str, go.Figure]:
    """The figures of a report one by one, as plotly figures.

    Args:
        source: as for `write_report`.

    Returns:
        Name -> figure, in the order of the page: the key of its chart, as ``profile``, and of a
        chart of several panels ``key/panel``.

    Example:
        >>> gradscope.figures(trace)["profile"].show()  # doctest: +SKIP
    """
    found: dict[str, go.Figure] = {}
    for key, chart in charts(source).items():
        for panel in chart.panels:
            name = key if len(chart.panels) == 1 else f"{key}/{panel.title}"
            found[name] = panel.figure
    return found


def _prepare(source: Source) -> Drawing:
    from gradscope.report import scheme
    from gradscope.report.figures import gallery
    from gradscope.study import effect, effects, match, match_cells, merge, tables

    gathered = merge.gather(source)
    study = gathered.study
    if not study.results:
        raise ConfigError(f"study '{study.name}': has no cells; run the grid first")
    read = tables.read(study, gathered.traces, gathered.kind)
    found = () if gathered.kind == "traces" else effects.effects(read)
    if found:
        read.frames["effects"] = effect.to_frame(found)
    if gathered.kind == "traces":
        read.frames["matched"] = match.matched_layers(read, (0, -1))
    elif gathered.kind == "studies":
        read.frames["matched"] = match_cells.matched_cells(read, gathered.factor)
    return gallery.Drawing(read, scheme.choose(read, found), found)
