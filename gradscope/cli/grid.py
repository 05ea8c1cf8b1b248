"""gradscope run-grid and gradscope report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class _EngineName(StrEnum):
    local = "local"
    ray = "ray"


def run_grid(  # noqa: PLR0917 - typer passes them by name
    grid: Annotated[
        Path, typer.Argument(help="The study, as YAML.", metavar="GRID.yaml", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The report, or a folder for it; reports/NAME.html if left out.",
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
        int | None,
        typer.Option(min=1, help="Processes; one per core if left out.", show_default=False),
    ] = None,
    engine: Annotated[_EngineName, typer.Option(help="Where cells run.")] = _EngineName.local,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting of the grid.", metavar="KEY=VALUE"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Train on this COCO folder.", metavar="DIR", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and the time they take; train none.")
    ] = False,
) -> None:
    """Train every cell of an ablation grid and write the report; run again, it goes on."""
    import json

    from gradscope.ablation import Grid
    from gradscope.ablation.run import run_grid as run
    from gradscope.cli import run_view
    from gradscope.report.write import write_report

    # As JSON, which is YAML that no character of a path can break.
    source = ["data.source=coco", f"data.root={json.dumps(str(data))}"] if data else []
    study_grid = Grid.load(grid, [*source, *(settings or [])])
    page = writable(_report_path(out, study_grid.name))
    folder = runs or Path("runs") / study_grid.name
    if dry_run:
        run_view.show_plan(study_grid, folder, jobs)
        return
    try:
        with run_view.observer() as observe:
            study = run(study_grid, folder, engine=engine.value, jobs=jobs, observe=observe)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: finished cells are in {folder}; the same command goes on", err=True
        )
        raise typer.Exit(130) from None
    run_view.show_study(study)
    typer.echo(write_report(study, page))


def _report_path(out: Path | None, name: str) -> Path:
    """The file itself, or one named after the study in the folder that was given."""
    if out is None:
        return Path("reports") / f"{name}.html"
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
            "-o", "--output", help="The HTML file; reports/NAME.html if left out.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Draw one offline HTML file from what was run; its tables go into a folder beside it."""
    from gradscope.report.write import load, write_report

    name = "-and-".join(path.resolve().stem for path in sources)
    page = writable(output or Path("reports") / f"{name}.html")
    typer.echo(write_report(load(sources), page))


def writable(page: Path) -> Path:
    """The path of a report, once it is known that it can be written; nothing is made yet."""
    import tempfile

    from gradscope.errors import ConfigError

    place = next(folder for folder in page.absolute().parents if folder.exists())
    reason = "it is a folder" if page.is_dir() else ""
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(
            f"{page}: cannot be written ({reason}); give another file, for example flow.html"
        )
    return page
