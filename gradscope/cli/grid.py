"""gradscope run-grid and gradscope report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gradscope.ablation import Grid


def run_grid(  # noqa: PLR0917 - typer passes them by name
    grid: Annotated[
        Path, typer.Argument(help="The study, as YAML.", metavar="GRID.yaml", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The report, or a folder for it; runs/NAME.html if left out.",
            metavar="FILE_OR_DIR",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; runs/NAME if left out.", metavar="DIR", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            help="Cells at a time; as many as fit if left out; auto: what is fastest here.",
            metavar="N|auto",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where cells run: local, ray or slurm.", metavar="NAME")
    ] = "local",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting of the grid.", metavar="KEY=VALUE"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Train on this COCO folder.", metavar="DIR", show_default=False),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Keep cells whose code or data changed since.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and the time they take; train none.")
    ] = False,
) -> None:
    """Train every cell of an ablation grid and write the report; run again, it goes on.

    Exit code 1 when a cell failed.
    """
    import json

    from gradscope.ablation import Grid
    from gradscope.cli.arguments import jobs_of

    # As JSON, which is YAML that no character of a path can break.
    source = ["data.source=coco", f"data.root={json.dumps(str(data))}"] if data else []
    n_jobs, layout = jobs_of(jobs)
    overrides = [*source, *layout, *(settings or [])]
    study_grid = Grid.load(grid, overrides, imported=False)
    page, folder = _checked(study_grid, out, runs, engine)
    study_grid = Grid.load(grid, overrides)

    from gradscope.ablation.run import run_grid as run
    from gradscope.cli import run_view, study_view

    if dry_run:
        fails = study_view.show_plan(study_grid, folder, n_jobs, engine=engine, trust=trust)
        raise typer.Exit(1 if fails else 0)
    try:
        with run_view.observer() as observe:
            study = run(
                study_grid, folder, engine=engine, jobs=n_jobs, observe=observe, trust=trust
            )
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: finished cells are in {folder}; the same command goes on", err=True
        )
        raise typer.Exit(130) from None
    failed = study_view.show_study(study)

    from gradscope.report.write import write_with_opening

    path, sentences = write_with_opening(study, page)
    for sentence in (*sentences, *study_view.count(study, observe.begun)):
        typer.echo(sentence)
    typer.echo(path)
    raise typer.Exit(1 if failed else 0)


def _checked(grid: Grid, out: Path | None, runs: Path | None, engine: str) -> tuple[Path, Path]:
    """Where the report and the results go, once all is known to be right that needs no torch."""
    from gradscope.ablation.store import Store
    from gradscope.cli.arguments import writable
    from gradscope.data.config import check
    from gradscope.engines.installed import check_engine

    check_engine(engine)
    page = writable(_report_path(out, grid.name))
    folder = runs or Path("runs") / grid.name
    Store(folder).refuse_others(grid.name)
    for config in {c.config.data.model_dump_json(): c.config.data for c in grid.cells()
                   if c.config.data is not None}.values():  # fmt: skip
        check(config)
    return page, folder


def _report_path(out: Path | None, name: str) -> Path:
    """The file itself, or one named after the study in the folder that was given."""
    if out is None:
        return Path("runs") / f"{name}.html"
    return out if out.suffix in (".html", ".htm") and not out.is_dir() else out / f"{name}.html"


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a run grid or a trace (Parquet); several are laid side by side.",
            metavar="RUNS_DIR",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The HTML file; runs/NAME.html if left out.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Draw one offline HTML file from what was run; its tables go into a folder beside it."""
    from gradscope.cli.arguments import check_sources, writable

    name = "-and-".join(path.resolve().stem for path in sources)
    page = writable(output or Path("runs") / f"{name}.html")
    check_sources(sources)

    from gradscope.cli import study_view
    from gradscope.report.write import load, write_report
    from gradscope.study.results import Study
    from gradscope.trace.table import Trace

    source = load(sources)
    for each in [source] if isinstance(source, Study | Trace) else source:
        if isinstance(each, Study):
            study_view.show_failures(each)
    typer.echo(write_report(source, page))
