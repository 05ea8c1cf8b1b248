"""The command line: one thin function per command; imports torch only inside commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from gradscope import __version__
from gradscope.errors import GradscopeError

app = typer.Typer(
    name="gradscope",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tell from the gradients why a PyTorch network does not learn, and prove what mends it.",
)
data_app = typer.Typer(
    no_args_is_help=True, help="Prepare images: the drawn demo set or a COCO folder."
)
app.add_typer(data_app, name="data")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gradscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Tell from the gradients why a PyTorch network does not learn, and prove what mends it."""


@app.command(
    epilog="Examples: gradscope diagnose run.parquet  |  gradscope diagnose run.parquet --json"
)
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

    from gradscope.diagnosis import diagnose as judge
    from gradscope.trace import Trace

    diagnosis = judge(Trace.load(trace))
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2, allow_nan=False))
    else:
        Console().print(diagnosis)
    raise typer.Exit(0 if diagnosis.is_healthy else 1)


@app.command(
    epilog="Examples: gradscope report runs/hw5  |  gradscope report runs/a runs/b -o compare.html"
    "  |  gradscope report run.parquet"
)
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a run grid, several to compare, or one recorded trace (Parquet).",
            metavar="RUNS_DIR...",
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
    from gradscope.report import load, write_report

    source = load(sources)
    name = "-and-".join(path.resolve().stem for path in sources)
    typer.echo(write_report(source, output or Path("reports") / f"{name}.html"))


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except GradscopeError as error:
        _fail(str(error))
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        typer.secho("interrupted", fg="yellow", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    one_line = " ".join(message.split())
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(one_line, err=True)
    sys.exit(2)
