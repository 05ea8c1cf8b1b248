"""gradscope probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.arguments import AsJson, argument, check_inputs, writable
from gradscope.errors import ConfigError


def probe(  # noqa: PLR0917 - typer passes them by name
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            help="package.module:factory or a built-in; several are compared.",
            metavar="SPEC...",
            show_default=False,
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of one random sample; repeat for several arguments."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 16,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Inputs are integers below this.", show_default=False)
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option(help="Inputs from a .pt or .npy file, with their batch.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Images and labels of the data that a grid trains on.")
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(help="Probe this cell of --grid: its network, initialisation, seed, images."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Draw the weights so: kaiming, xavier_normal, ...")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for factories that take it.")
    ] = None,
    args: Annotated[
        list[str] | None, typer.Option(help="name=value for the factory; repeat for several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and targets.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draws of the weights to judge together: sick if more than half are; 3, for a "
            "cell 1.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Passes to record.")] = 1,
    remedies: Annotated[
        bool, typer.Option("--try", help="Try remedies on copies and rank them.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report too.", metavar="FILE", show_default=False)
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where a factory or network raised.")
    ] = False,
) -> None:
    """Judge networks by one forward and backward pass; exit code 1 when one is unhealthy."""
    import json

    from gradscope.models.config import resolve

    if html is not None:
        writable(html)
    if cell is not None and grid is None:
        raise ConfigError(f"--cell {cell}: of which grid? add --grid FILE.yaml")
    check_inputs(shapes or (), batch, input_file, grid)
    for text in args or ():
        argument(text)
    for spec in sorted(specs or (), key=lambda spec: ":" in spec):  # names need no import
        resolve(spec)

    from gradscope.cli import probe_inputs, probe_tables, probe_view
    from gradscope.report.write import write_report

    with _shown(traceback):
        chosen = probe_inputs.chosen_cell(grid, cell) if cell is not None else None
        seed = chosen.config.seed if chosen else seed
        inputs, targets, found = probe_inputs.gather(
            shapes or (), batch, tokens=tokens, file=input_file, grid=grid, seed=seed, cell=chosen
        )
        models = probe_inputs.build_models(
            specs or (),
            args or (),
            classes or found,
            seed,
            draws=seeds or (1 if chosen else 3),
            init=init,
            cell=chosen,
        )
        probed = []
        for name, draws in models.items():
            typer.echo(f"probing {name}", err=True)
            probed.append(
                probe_view.probe_draws(
                    name, draws, inputs, targets, seed=seed, steps=steps, remedies=remedies
                )
            )
    if as_json:
        told = [each.to_dict() for each in probed]
        typer.echo(json.dumps(told if len(told) > 1 else told[0], indent=2, allow_nan=False))
    else:
        console = probe_tables.console()
        console.print(probe_view.summary(probed, console.width), crop=False)
    for each, path in zip(probed, probe_view.numbered(html, len(probed)), strict=False):
        typer.echo(write_report(each.trace, path), err=True)
    raise typer.Exit(0 if all(each.diagnosis.is_healthy for each in probed) else 1)


@contextmanager
def _shown(wanted: bool) -> Iterator[None]:
    """Where asked for, show what a factory or a network raised before the one line that says so."""
    import traceback

    from gradscope.errors import GradscopeError

    try:
        yield
    except GradscopeError as error:
        if wanted and error.__cause__ is not None:
            typer.echo("".join(traceback.format_exception(error.__cause__)), err=True, nl=False)
        raise
