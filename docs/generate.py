"""Writes the pages that are made from the code: the reference and the gallery's reports.

Sphinx calls `write` before it reads the pages; what is written is kept by no one.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

import gradscope

FOLDER = "reference"


def write(docs: Path, site: Path) -> None:
    """Write every page, where its text has changed, and the reports of the gallery.

    Args:
        docs: the folder of the sources.
        site: the folder of what is built.
    """
    torch.set_num_threads(1)  # the networks are small
    folder = docs / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {name: make() for name, make in PAGES.items()} | {"gallery": gallery(site / "gallery")}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


COLUMNS = """\
`trace.to_pandas()` and the Parquet file have one row per recorded step and tensor. How each number
is taken, and when: [](../recorder.md)."""
GRID = """\
A key that is not here is an error that names the line and the nearest key. How grids are written
and what they do: [](../grids.md)."""
COMMANDS = """\
`gradscope COMMAND --help` says the same. Exit codes: 0 done and healthy; 1 done, and a network is
unhealthy or a cell failed; 2 bad input, or a machine that cannot; 130 interrupted."""
GALLERY = """\
Reports of small networks, most of them sick in a known way, trained for a few steps by
`python -m examples.gallery`. [How to read them](../reading.md)."""
STUDIES = """\
## Studies

What a grid leaves: 32 variants of HW5Net on drawn images ([report](../../reports/hw5.html)), the
reference study on real images ([report](../../reports/hw5-study.html)), and its whole matrix, 64
cells ([report](../../reports/hw5-coco.html)). What came out: [the study](../study.md)."""
JSON = """\
With `--json` a command prints one document and nothing else on stdout; numbers that are not finite
are `null`. New keys may come, known ones stay."""


# what a class says of its fields


def described(kind: type[Any]) -> dict[str, str]:
    """Field of a class -> the text under it, on one line; fields of its bases first."""
    told: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not each.__module__.startswith("gradscope"):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                told[field.target.id] = _text(text)
    return told


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return " ".join(node.value.value.split()) if is_text else ""  # type: ignore[union-attr]


def shown(kind: Any) -> str:
    """A type as a reader of a grid says it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin is typing.Annotated:
        return shown(inside[0])
    if origin in (list, tuple):
        return f"list of {shown(inside[0])}"
    if origin is dict:
        return "mapping"
    if inside:  # a union
        return " or ".join(shown(each) for each in inside if each is not type(None))
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(kind, "mapping" if inspect.isclass(kind) else "any")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


# the pages


def api() -> str:
    """The public names, from their docstrings."""
    lines = ["# Python API", "", "All that stands at the top is reached as `gradscope.NAME`."]
    for name in gradscope.__all__:
        value = getattr(gradscope, name)
        if not inspect.ismodule(value):
            kind = "class" if inspect.isclass(value) else "function"
            lines += ["", f"## {name}", "", *_documented(kind, f"gradscope.{name}")]
    for title, names in ELSEWHERE.items():
        lines += ["", f"## {title}", ""]
        for name, kind in names.items():
            lines += [*_documented(kind, f"gradscope.{name}"), ""]
    return "\n".join(lines) + "\n"


ELSEWHERE = {
    "Findings, and their changes": {
        "diagnosis.Finding": "class",
        "diagnosis.Evidence": "class",
        "diagnosis.Change": "class",
    },
    "In tests": {"testing.assert_gradient_health": "function"},
    "In trainers and logs": {
        "integrations.tensorboard": "function",
        "integrations.lightning.GradscopeCallback": "callback",
        "integrations.transformers.GradscopeCallback": "callback",
    },
}
"""Public names below the top, by title; of a callback its methods are the trainer's to know."""


def _documented(kind: str, name: str) -> list[str]:
    directive = "autofunction" if kind == "function" else "autoclass"
    options = ["   :members:"] if kind == "class" else []
    return ["```{eval-rst}", f".. {directive}:: {name}", *options, "```"]


def columns() -> str:
    """The columns of a trace, and what else a trace holds."""
    from gradscope.trace import structure
    from gradscope.trace.table import RecordedStep, RecordedTensor
    from gradscope.trace.vocabulary import STATISTICS

    labels = described(RecordedStep) | described(RecordedTensor)
    before = ("step", "epoch", "kind", "module", "parameter", "call", "output", "order")
    after = ("loss_scale", "skipped", "loss")
    rows = [(f"`{name}`", labels[name]) for name in before]
    rows += [(f"`{name}`", text) for name, text in STATISTICS.items()]
    rows += [(f"`{name}`", labels[name]) for name in after]
    rows.append(("`log2_histogram`", "with `histograms=True`: counts of log2 of the magnitudes"))
    lines = ["# Columns of a trace", "", COLUMNS, ""]
    lines += [*table(("column", "what it holds"), rows), "", "## Beside the table", ""]
    lines.append("`trace.structure`, also in the header of the file:")
    for kind in ("Structure", "ModuleInfo", "Block", "ParameterGroup", "Summary", "LossSide"):
        fields = described(getattr(structure, kind))
        lines += ["", f"### {kind}", "", _first(getattr(structure, kind)), ""]
        lines += table(
            ("field", "what it holds"), ((f"`{name}`", text) for name, text in fields.items())
        )
    return "\n".join(lines) + "\n"


def _first(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def grid_keys() -> str:
    """Every key of a grid, from the models that check it."""
    from gradscope.ablation import settings
    from gradscope.models.config import InitConfig

    sections = {
        "": settings.GridConfig,
        **settings.SECTIONS,
        "model.init": InitConfig,
        "resources": settings.ResourcesConfig,
        "stop": settings.StopConfig,
    }
    lines = ["# Keys of a grid", "", GRID]
    for name, kind in sections.items():
        lines += ["", f"## {name or 'The top'}", "", _first(kind), ""]
        lines += table(("key", "value", "default", "what it is"), grid_rows(kind))
    return "\n".join(lines) + "\n"


def grid_rows(kind: Any) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and text of each setting of a pydantic model."""
    told = described(kind)
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            given = "must be given"
        elif isinstance(default, BaseModel):
            given = "see there"
        else:
            given = f"`{json.dumps(default)}`".replace("`null`", "none")
        yield f"`{name}`", shown(field.annotation), given, told[name]


def commands() -> str:
    """Every command with its arguments and options, as its help tells them."""
    from typer.main import get_command

    from gradscope.cli.app import app

    lines = ["# Commands", "", COMMANDS]
    for name, command in _leaves(get_command(app)):
        lines += ["", f"## gradscope {name}", "", " ".join((command.help or "").split())]
        lines += ["", *table(("argument or option", "what it is"), parameter_rows(command))]
        runs = (command.epilog or "").removeprefix("Examples:").split("  |  ")
        lines += ["", "```bash", *(run.strip() for run in runs if run.strip()), "```"]
    return "\n".join(lines) + "\n"


def _leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inside = getattr(command, "commands", None)
    if inside is None:
        yield name, command
        return
    for key, each in inside.items():
        yield from _leaves(each, f"{name} {key}".strip())


def parameter_rows(command: Any) -> Iterator[tuple[str, str]]:
    """Arguments and options of a command."""
    types = typing.get_type_hints(inspect.unwrap(command.callback))
    for each in command.params:
        if each.name == "help":
            continue
        names = ", ".join([*each.opts, *each.secondary_opts])
        told = (each.help or "").strip()
        if each.param_type_name == "argument":
            yield f"`{each.metavar or each.name.upper()}`", told
            continue
        value = "" if each.is_flag else f" {each.metavar or _value(types[each.name])}"
        default = each.default.value if isinstance(each.default, Enum) else each.default
        says = "" if default is None or each.is_flag else f" Default: `{default}`."
        yield f"`{names}{value}`", told + says


def _value(kind: Any) -> str:
    """What stands behind an option: choices, or a word for the type."""
    inside = [each for each in typing.get_args(kind) if each is not type(None)]
    kind = inside[0] if inside else kind
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return "|".join(kind)
    return {int: "N", float: "NUMBER", Path: "FILE"}.get(kind, "TEXT")


def gallery(folder: Path) -> str:
    """The page of reports of sick networks; the reports are written into a folder of the site."""
    from examples import gallery as made

    lines = ["# Gallery", "", GALLERY]
    for patient, diagnosis in made.draw(folder):
        lines += ["", f"## {patient.title}", "", patient.what, ""]
        lines += [f'<a href="../{folder.name}/{patient.name}.html">Open the report</a>.', ""]
        lines += ["```text", *textwrap.wrap(f"verdict: {diagnosis.verdict}", 90)]
        for finding in diagnosis.findings:
            told = f"[{finding.severity.value}] {finding.kind}: {finding.where}. {finding.message}"
            lines += textwrap.wrap(told, 90, subsequent_indent="    ")
        lines.append("```")
    return "\n".join([*lines, "", STUDIES]) + "\n"


def json_page() -> str:
    """What ``--json`` prints, by example and key by key."""
    lines = ["# JSON", "", JSON]
    for title, (document, told) in documents().items():
        lines += [
            "",
            f"## {title}",
            "",
            *table(("key", "type", "what it is"), key_rows(document, told)),
        ]
        text = json.dumps(shortened(document), indent=2)
        lines += ["", "```json", text, "```"]
    return "\n".join(lines) + "\n"


def documents() -> dict[str, tuple[Any, Mapping[str, str]]]:
    """Command -> a document that it prints, and what its keys are."""
    from typer.testing import CliRunner

    from gradscope.cli.app import app
    from gradscope.cli.study_view import Judged
    from gradscope.data.config import DataConfig
    from gradscope.diagnosis.explain import Explanation, Limit
    from gradscope.diagnosis.verdict import Evidence, Finding, RestsOn
    from gradscope.study.results import CellResult

    def printed(*args: str) -> Any:
        return json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)

    probed = printed("probe", "hw5net", "--input", "3,64,64", "--batch", "4", "--args",
                     "skip=false", "--args", "batch_norm=false", "--args", "depth=8",
                     "--seeds", "1", "--try")  # fmt: skip
    diagnosis = {name: probed[name] for name in ("verdict", "findings", "rests_on")}
    cell = Judged(CellResult("depth32-s0-1a2b3c4d", {}, 0, "done", {}), None).to_dict()
    told = {
        "verdict": "one of the [verdicts](../findings.md#verdicts)",
        "findings": "worst first",
        "rests_on": "what was looked at",
        **{f"findings[].{name}": text for name, text in described(Finding).items()},
        **{f"findings[].evidence.*.{name}": text for name, text in described(Evidence).items()},
        **{f"rests_on.{name}": text for name, text in described(RestsOn).items()},
        "findings[].evidence": "names of numbers -> each with its unit",
        "findings[].evidence.*": "one number",
        "findings[].evidence.*.value": "`null` where it is not finite",
        "rests_on.first": "the first of them",
        "rests_on.last": "the last of them",
        "findings[].severity": "`info`, `warning` or `error`; only errors make a verdict",
    }
    cells = {
        "[].cell": "id of the cell",
        "[].status": "`done`, `diverged`, `failed`, `stopped`, `running` or `pending`",
        "[].error": "one line, where it failed, diverged or cannot be read",
        "[].diagnosis": "as of one run; `null` where there is no trace",
    }
    limits = {f"limits[].{name}": text for name, text in described(Limit).items()}
    return {
        "gradscope diagnose RUN.parquet": (diagnosis, told),
        "gradscope diagnose RUNS_DIR": ([{**cell, "diagnosis": diagnosis}], cells),
        "gradscope probe": (probed, told | PROBE_KEYS),
        "gradscope explain KIND": (
            printed("explain", "vanishing"),
            described(Explanation) | limits | EXPLAIN_KEYS,
        ),
        "gradscope data demo, gradscope data coco": (
            printed("data", "demo", "--train-per-class", "2", "--val-per-class", "2", "--size",
                    str(DataConfig().size // 4)),
            DATA_KEYS,
        ),
    }  # fmt: skip


PROBE_KEYS = {
    "model": "its name, as it was given; with several, the document is a list",
    "draws": "with `--seeds`: each draw of the weights",
    "draws[].seed": "that drew the weights",
    "draws[].verdict": "on this draw alone",
    "parameters": "how many numbers the network learns",
    "slope_decades_per_block": "change of the gradient norm towards the input, robust",
    "slope_interval": "95 % interval of it",
    "blocks": "from the input on",
    "blocks[].block": "its name",
    "blocks[].chi": "measured factor of the gradient over the block; `null` for the first",
    "blocks[].predicted_chi": "the same by theory",
    "blocks[].predicted_log_std": "standard deviation of its logarithm at finite width",
    "blocks[].prediction": "which result was used, or why none applies",
    "outputs": "of the network",
    "outputs[].output": "place in what the network returns",
    "outputs[].shape": "with the examples first",
    "outputs[].rms": "size of its numbers",
    "probe": "what it was run with",
    "seconds": "that the draw that is shown took",
    "remedies": "with `--try`",
    "remedies.baseline": "the network as it is",
    "remedies.ranked": "best first",
    "remedies.not_applicable": "with the reason",
    "remedies.best": "name of the best one",
    "remedies.ranked[].change": "what was done to a copy of the network",
    "remedies.ranked[].decades": "change of the gradient norm over the whole depth",
    "remedies.ranked[].forward_decades": "the same of the outputs",
}

EXPLAIN_KEYS = {
    "kind": "a verdict or a kind of finding",
    "means": "in a sentence or two",
    "limits": "numbers that it rests on",
    "limits[].name": "in `gradscope.diagnosis.limits`",
    "limits[].value": "in the unit that the reason names",
}

DATA_KEYS = {
    "source": "as it is named in a grid",
    "classes": "in the order of their labels",
    "shape": "channels, height, width",
    "counts": "images of each class in `train` and `val`",
    "left_out": "images that were left out, by reason",
    "notes": "what is worth a line",
    "fingerprint": "of the images; another one is other data",
}


def key_rows(document: Any, told: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Path of each key that is explained, its type, and what it is."""
    kinds = dict(keys_of(document))
    for name, text in told.items():
        if name in kinds:
            yield f"`{name}`", kinds[name], text


def keys_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path of each key below a value, ``[]`` for the parts of a list, and its type."""
    if isinstance(value, dict):
        named = path.endswith((".evidence",))  # names of numbers, not keys
        for key, inner in value.items():
            here = f"{path}.{'*' if named else key}".lstrip(".")
            yield here, _json_type(inner)
            yield from keys_of(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, f"{path}[]")


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def shortened(value: Any) -> Any:
    """A document with the first of each long list."""
    if isinstance(value, list):
        return [shortened(each) for each in value[:2]]
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    return value


PAGES = {
    "api": api,
    "columns": columns,
    "grid": grid_keys,
    "commands": commands,
    "json": json_page,
}
"""Name of a page of the reference -> what makes it."""
