"""gradscope data coco and gradscope data demo."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.arguments import AsJson


class _Overlap(StrEnum):
    drop = "drop"
    largest = "largest"


_Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--classes", help="Names, separated by commas; all if left out.", show_default=False
    ),
]

_PerTrain = Annotated[
    int | None,
    typer.Option("--train-per-class", min=1, help="At most so many.", show_default=False),
]

_PerVal = Annotated[
    int | None, typer.Option("--val-per-class", min=1, help="At most so many.", show_default=False)
]

_Size = Annotated[int, typer.Option(min=1, max=4096, help="Pixels of each side.")]


_DataSeed = Annotated[int, typer.Option(min=0, help="Of the draw of images.")]


def data_coco(  # noqa: PLR0917 - typer passes them by name
    root: Annotated[
        Path,
        typer.Argument(
            help="Folder with annotations/instances_*.json and the images.", show_default=False
        ),
    ],
    classes: _Classes = None,
    train_per_class: _PerTrain = None,
    val_per_class: _PerVal = None,
    size: _Size = 64,
    overlap: Annotated[
        _Overlap,
        typer.Option(help="Images with several of the classes: left out, or the largest wins."),
    ] = _Overlap.drop,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable images that stops.")
    ] = 0.01,
    seed: _DataSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Read and cache the images of a COCO folder; show how many there are of each class."""
    _prepare(
        {
            "source": "coco",
            "root": root,
            "classes": _names(classes),
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "size": size,
            "overlap": overlap.value,
            "max_unreadable_fraction": max_unreadable,
            "seed": seed,
        },
        as_json=as_json,
    )


def data_demo(  # noqa: PLR0917 - typer passes them by name
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write it here as a COCO folder; else only the cache is prepared.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    classes: _Classes = None,
    train_per_class: _PerTrain = None,
    val_per_class: _PerVal = None,
    size: _Size = 64,
    seed: _DataSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw the demo set, five classes in cluttered scenes; show how many there are of each."""
    from gradscope.cli import data_view
    from gradscope.data import DataConfig, demo

    settings: dict[str, Any] = {
        "classes": _names(classes),
        "train_per_class": train_per_class,
        "val_per_class": val_per_class,
        "size": size,
        "seed": seed,
    }
    if out is not None:
        with data_view.progress_bar() as progress:
            demo.export(out, DataConfig(**settings), progress)
        settings |= {"source": "coco", "root": out}
    _prepare(settings, as_json=as_json)


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Names of classes: ``--classes a,b --classes c`` gives a, b and c."""
    return tuple(name.strip() for each in given or () for name in each.split(",") if name.strip())


def _prepare(settings: dict[str, Any], *, as_json: bool) -> None:
    import json

    from gradscope.data.config import DataConfig, check

    config = DataConfig(**settings)
    check(config)

    from rich.console import Console

    from gradscope.cli import data_view
    from gradscope.data import load

    with data_view.progress_bar() as progress:
        splits = load(config, progress)
    if as_json:
        typer.echo(json.dumps(data_view.to_dict(splits), indent=2))
    else:
        Console().print(data_view.table(splits))
