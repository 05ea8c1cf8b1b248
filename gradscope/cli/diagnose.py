"""gradscope diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.arguments import AsJson


def diagnose(
    source: Annotated[
        Path,
        typer.Argument(
            help="A Parquet file that Trace.save() wrote, or the folder of a run grid.",
            metavar="RUN.parquet|RUNS_DIR",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Judge a recorded run, or every cell of a grid; exit code 1 when one is unhealthy."""
    from gradscope.cli.arguments import check_trace

    if source.is_dir():
        healthy = _study(source, as_json=as_json)
    else:
        check_trace(source)
        healthy = _trace(source, as_json=as_json)
    raise typer.Exit(0 if healthy else 1)


def _trace(path: Path, *, as_json: bool) -> bool:
    import json

    from rich.console import Console

    from gradscope.diagnosis.judge import diagnose as judge
    from gradscope.trace.table import Trace

    diagnosis = judge(Trace.load(path))
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2, allow_nan=False))
    else:
        Console().print(diagnosis)
    return diagnosis.is_healthy


def _study(folder: Path, *, as_json: bool) -> bool:
    import json

    from gradscope.ablation.store import Store
    from gradscope.errors import ConfigError

    study = Store.load(folder)
    if not any(result.status not in ("pending", "running") for result in study.results):
        raise ConfigError(f"{folder}: no cell has been run yet; run the grid first")

    from gradscope.cli import study_view

    judged = study_view.judge(study)
    if as_json:
        told = [each.to_dict() for each in judged]
        typer.echo(json.dumps(told, indent=2, allow_nan=False))
    else:
        study_view.output().print(study_view.judgements(study, judged))
        study_view.show_failures(study)
    return not any(each.is_unhealthy for each in judged)
