"""The command line: one thin function per command; imports torch only inside commands."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope import __version__
from gradscope.errors import GradscopeError

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
    epilog="Examples: gradscope probe torchvision.models:resnet50 --input 3,224,224  |  "
    "gradscope probe my.models:plain my.models:residual --input 3,64,64 --args depth=32  |  "
    "gradscope probe hw5net --input 3,64,64 --args skip=false --try  |  "
    "gradscope probe my.models:gpt --input 128 --tokens 50257 --json  |  "
    "gradscope probe hw5net --grid ablations/hw5.yaml --html flow.html"
)
def probe(  # noqa: PLR0917 - typer passes them by name
    specs: Annotated[
        list[str],
        typer.Argument(
            help="package.module:factory or a built-in; several are compared.",
            metavar="SPEC...",
            show_default=False,
        ),
    ],
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
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for factories that take it.")
    ] = None,
    args: Annotated[
        list[str] | None, typer.Option(help="name=value for the factory; repeat for several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and targets.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Passes to record.")] = 1,
    remedies: Annotated[
        bool, typer.Option("--try", help="Try remedies on copies and rank them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report too.", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Judge networks by one forward and backward pass; exit code 1 when one is unhealthy."""
    import json

    from rich.console import Console

    from gradscope import compare
    from gradscope.report import write_report

    if html is not None:
        _writable(html)
    inputs, targets, found = compare.gather(
        shapes or (), batch, tokens=tokens, file=input_file, grid=grid, seed=seed
    )
    models = compare.build_models(specs, args or (), classes or found, seed)
    probed = []
    for name, model in models.items():
        typer.echo(f"probing {name}", err=True)
        probed.append(
            compare.probe_model(
                name, model, inputs, targets, seed=seed, steps=steps, remedies=remedies
            )
        )
    if as_json:
        told = [each.to_dict() for each in probed]
        typer.echo(json.dumps(told if len(told) > 1 else told[0], indent=2, allow_nan=False))
    else:
        Console().print(compare.summary(probed))
    for each, path in zip(probed, compare.numbered(html, len(probed)), strict=False):
        typer.echo(write_report(each.trace, path), err=True)
    raise typer.Exit(0 if all(each.diagnosis.is_healthy for each in probed) else 1)


class _EngineName(StrEnum):
    local = "local"
    ray = "ray"


@app.command(
    "run-grid",
    epilog="Examples: gradscope run-grid ablations/hw5.yaml  |  "
    "gradscope run-grid ablations/hw5.yaml --dry-run  |  "
    "gradscope run-grid ablations/hw5-coco.yaml --data ~/coco --set train.epochs=2 --jobs 4  |  "
    "gradscope run-grid ablations/net3.yaml --runs runs/try --out try.html",
)
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

    from gradscope.ablation import Grid, display
    from gradscope.ablation.run import run_grid as run
    from gradscope.report import write_report

    # As JSON, which is YAML that no character of a path can break.
    source = ["data.source=coco", f"data.root={json.dumps(str(data))}"] if data else []
    study_grid = Grid.load(grid, [*source, *(settings or [])])
    page = _writable(_report_path(out, study_grid.name))
    folder = runs or Path("runs") / study_grid.name
    if dry_run:
        display.show_plan(study_grid, folder, jobs)
        return
    try:
        with display.observer() as observe:
            study = run(study_grid, folder, engine=engine.value, jobs=jobs, observe=observe)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: finished cells are in {folder}; the same command goes on", err=True
        )
        raise typer.Exit(130) from None
    display.show_study(study)
    typer.echo(write_report(study, page))


def _report_path(out: Path | None, name: str) -> Path:
    """The file itself, or one named after the study in the folder that was given."""
    if out is None:
        return Path("reports") / f"{name}.html"
    return out if out.suffix in (".html", ".htm") and not out.is_dir() else out / f"{name}.html"


@app.command(
    epilog="Examples: gradscope report runs/hw5  |  gradscope report runs/a runs/b -o compare.html"
    "  |  gradscope report run.parquet"
)
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a run grid, several to compare, or one recorded trace (Parquet).",
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
    from gradscope.report import load, write_report

    name = "-and-".join(path.resolve().stem for path in sources)
    page = _writable(output or Path("reports") / f"{name}.html")
    typer.echo(write_report(load(sources), page))


def _writable(page: Path) -> Path:
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
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@data_app.command(
    "coco",
    epilog="Examples: gradscope data coco ~/coco --classes cat,dog,'dining table' "
    "--train-per-class 1500 --val-per-class 500  |  gradscope data coco ~/coco --classes cat,dog "
    "--overlap largest --json",
)
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
    as_json: _AsJson = False,
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


@data_app.command(
    "demo",
    epilog="Examples: gradscope data demo  |  gradscope data demo --out demo --train-per-class 50 "
    "--val-per-class 20  |  gradscope data demo --classes cat,dog --json",
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
    as_json: _AsJson = False,
) -> None:
    """Draw the demo set, five classes in cluttered scenes; show how many there are of each."""
    from gradscope.data import DataConfig, console, demo

    settings: dict[str, Any] = {
        "classes": _names(classes),
        "train_per_class": train_per_class,
        "val_per_class": val_per_class,
        "size": size,
        "seed": seed,
    }
    if out is not None:
        with console.progress_bar() as progress:
            demo.export(out, DataConfig(**settings), progress)
        settings |= {"source": "coco", "root": out}
    _prepare(settings, as_json=as_json)


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Names of classes: ``--classes a,b --classes c`` gives a, b and c."""
    return tuple(name.strip() for each in given or () for name in each.split(",") if name.strip())


def _prepare(settings: dict[str, Any], *, as_json: bool) -> None:
    import json

    from rich.console import Console

    from gradscope.data import DataConfig, console, load

    with console.progress_bar() as progress:
        splits = load(DataConfig(**settings), progress)
    if as_json:
        typer.echo(json.dumps(console.to_dict(splits), indent=2))
    else:
        Console().print(console.table(splits))


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except GradscopeError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())  # type: ignore[attr-defined]  # typer exports no base class
    except (KeyboardInterrupt, typer.Abort):
        typer.secho("interrupted", fg="yellow", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    one_line = " ".join(message.split())
    if one_line:  # empty where the help was printed for want of arguments
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(one_line, err=True)
    sys.exit(2)
