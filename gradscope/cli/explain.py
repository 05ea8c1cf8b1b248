"""gradscope explain."""

from __future__ import annotations

from typing import Annotated

import typer

from gradscope.cli.arguments import AsJson


def explain(
    kind: Annotated[
        str | None,
        typer.Argument(help="A verdict or a kind of finding; none lists all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a verdict or a finding means, how it is found, and what else looks like it."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gradscope.diagnosis import explain as texts

    if kind is not None:
        each = texts.explain(kind)
        if as_json:
            typer.echo(json.dumps(each.to_dict(), indent=2))
        else:
            Console().print(Text(str(each)))
        return
    known = texts.explanations().values()
    if as_json:
        typer.echo(json.dumps([each.to_dict() for each in known], indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("kind", "meaning"):
        table.add_column(title, overflow="fold")
    for each in known:
        name = Text(each.kind, style="bold" if each.verdict else "")
        table.add_row(name, Text(each.means))
    Console().print(table)
