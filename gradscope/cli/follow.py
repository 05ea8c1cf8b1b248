"""gradscope follow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gradscope.cli.follow_view import Followed

_LOOK_S = 0.5
"""Between two looks at the file."""

_SHARE = 0.1
"""Of one processor that reading and judging may take: the training needs it more."""


def follow(
    source: Annotated[
        Path,
        typer.Argument(
            help="The file that watch(save=...) writes; it may not be there yet.",
            metavar="RUN.parquet",
            show_default=False,
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Print what there is and end.")] = False,
) -> None:
    """Show a training while it runs: flow by block, updates, loss and findings.

    Ends with the training, as diagnose does: exit code 1 when it is unhealthy.
    """
    from gradscope.cli.arguments import check_trace, may_come

    if once:
        check_trace(source)
    else:
        may_come(source)

    from rich.console import Console

    console = Console(highlight=False)
    shown = _once(source, console) if once else _live(source, console)
    raise typer.Exit(0 if shown.diagnosis.is_healthy else 1)


def _once(path: Path, console: Console) -> Followed:
    from gradscope.cli.follow_view import Followed

    followed = Followed.of(path)
    console.print(followed.view(console.width))
    return followed


def _live(path: Path, console: Console) -> Followed:
    """Until the training is closed; the last view stays on the screen."""
    if not path.exists():
        typer.echo(
            f"waiting for {path}: watch(..., save='{path}') writes it at its first step; "
            "Ctrl-C ends",
            err=True,
        )
        while not path.exists():
            time.sleep(_LOOK_S)

    from rich.live import Live

    from gradscope.cli.follow_view import Followed

    followed, took = _timed(path)
    due = time.monotonic() + took / _SHARE
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(followed.view(console.width, console.height), refresh=True)
            if not followed.is_running:
                live.update(followed.view(console.width), refresh=True)
                return followed
            time.sleep(_LOOK_S)
            if time.monotonic() >= due and Followed.written(path) not in (None, followed.time):
                followed, took = _timed(path)
                due = time.monotonic() + took / _SHARE


def _timed(path: Path) -> tuple[Followed, float]:
    from gradscope.cli.follow_view import Followed

    began = time.monotonic()
    return Followed.of(path), time.monotonic() - began
