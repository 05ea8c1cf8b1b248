"""gradscope diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    trace: Annotated[
        Path, typer.Argument(help="A Parquet file that Trace.save() wrote.", show_default=False)
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the diagnosis as JSON and nothing else.")
    ] = False,
) -> None:
    """Judge a recorded run: verdict, findings, remedies; exit code 1 when it is unhealthy."""
    import json

    from rich.console import Console

    from gradscope.diagnosis.diagnose import diagnose as judge
    from gradscope.trace.table import Trace

    diagnosis = judge(Trace.load(trace))
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2, allow_nan=False))
    else:
        Console().print(diagnosis)
    raise typer.Exit(0 if diagnosis.is_healthy else 1)
