"""The table of commands, and how a run of the command line ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated

import typer

from gradscope.cli.data import data_coco, data_demo
from gradscope.cli.diagnose import diagnose
from gradscope.cli.explain import explain
from gradscope.cli.follow import follow
from gradscope.cli.grid import report, run_grid
from gradscope.cli.probe import probe
from gradscope.errors import GradscopeError, no_space, one_line

# ClickException, of click itself or of the copy that newer typers bring.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

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
        typer.echo(f"gradscope {metadata.version('gradscope-torch')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Tell from the gradients why a PyTorch network does not learn, and prove what mends it."""


app.command(
    epilog="Examples: gradscope diagnose run.parquet  |  gradscope diagnose run.parquet --json"
    "  |  gradscope diagnose runs/hw5"
)(diagnose)
app.command(
    epilog="Examples: gradscope follow run.parquet  |  gradscope follow run.parquet --once"
)(follow)
app.command(
    epilog="Examples: gradscope explain vanishing  |  gradscope explain  |  "
    "gradscope explain updates-lost --json"
)(explain)
app.command(
    epilog="Examples: gradscope probe torchvision.models:resnet50 --input 3,224,224  |  "
    "gradscope probe my.models:plain my.models:residual --input 3,64,64 --args depth=32  |  "
    "gradscope probe hw5net --input 3,64,64 --args skip=false --try  |  "
    "gradscope probe my.models:gpt --input 128 --tokens 50257 --json  |  "
    "gradscope probe hw5net --grid ablations/hw5.yaml --html flow.html  |  "
    "gradscope probe --grid ablations/hw5.yaml --cell no-skip-batch_norm-kaiming-depth32-lr0.001"
)(probe)
app.command(
    "run-grid",
    epilog="Examples: gradscope run-grid ablations/hw5.yaml  |  "
    "gradscope run-grid ablations/hw5.yaml --dry-run  |  "
    "gradscope run-grid ablations/hw5-coco.yaml --data ~/coco --set train.epochs=2 --jobs 4  |  "
    "gradscope run-grid ablations/net3.yaml --runs runs/try --out try.html",
)(run_grid)
app.command(
    epilog="Examples: gradscope report runs/hw5  |  gradscope report runs/a runs/b -o compare.html"
    "  |  gradscope report run.parquet  |  gradscope report before.parquet after.parquet"
)(report)
data_app.command(
    "coco",
    epilog="Examples: gradscope data coco ~/coco --classes cat,dog,'dining table' "
    "--train-per-class 1500 --val-per-class 500  |  gradscope data coco ~/coco --classes cat,dog "
    "--overlap largest --json",
)(data_coco)
data_app.command(
    "demo",
    epilog="Examples: gradscope data demo  |  gradscope data demo --out demo --train-per-class 50 "
    "--val-per-class 20  |  gradscope data demo --classes cat,dog --json",
)(data_demo)


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        with _termination_as_interrupt():
            code = app(standalone_mode=False)
    except GradscopeError as error:
        _fail(str(error))
    except OSError as error:
        full = no_space(error)
        if full is None:
            raise
        _fail(str(full))
    except _UsageError as error:
        _fail(error.format_message())  # type: ignore[attr-defined]  # typer exports no base class
    except (KeyboardInterrupt, typer.Abort):
        typer.secho("interrupted", fg="yellow", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, with which schedulers end a program, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> None:
    told = one_line(message)
    if told:  # empty where the help was printed for want of arguments
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(told, err=True)
    sys.exit(2)
