"""Bad input through the command line: one line that names the place and the remedy, exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from gradscope.cli import app

GRID = """\
name: good
model:
  name: good_nets:net
data:
  source: coco
  root: coco
  size: 8
train:
  batch_size: 4
matrix:
  lr: [1e-2, 1e-3]
  width: [2]
"""

NETS = """\
import torch
from torch import nn


def net(n_classes, width=2):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(36 * width, n_classes))


def raises():
    raise RuntimeError("no disk")


def number():
    return 7


def ragged():
    pairs = [(torch.zeros(3, 8, 8, dtype=torch.uint8), 0), ("no image", 1)]
    return pairs, pairs
"""

CLASSES = {"cat": 17, "dog": 18}


def write_good_input(folder: Path) -> None:
    """A grid, the factories it names and a COCO folder, all right."""
    (folder / "grid.yaml").write_text(GRID)
    (folder / "good_nets.py").write_text(NETS)
    root = folder / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for split, count in {"train": 6, "val": 4}.items():
        coco = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": i, "name": name} for name, i in CLASSES.items()]
        for number in range(1, count + 1):
            name = f"{split}{number}.png"
            colour = (20 * number, 200 if split == "val" else 90, 40)
            Image.new("RGB", (9, 7), colour).save(root / "images" / name)
            coco["images"].append({"id": number, "file_name": name, "height": 7, "width": 9})
            coco["annotations"].append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": list(CLASSES.values())[number % 2],
                    "bbox": [0, 0, 3, 3],
                    "area": 9.0,
                    "iscrowd": 0,
                }
            )
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


@dataclass(frozen=True)
class Bad:
    """One way in which good input becomes bad."""

    place: str
    """What the line must name: file and line, option, or path (regular expression)."""
    remedy: str
    """What it must say would be right (regular expression)."""
    args: str = "run-grid grid.yaml --jobs 1"
    bend: Callable[[Path], object] = lambda folder: None
    """Spoils the good input that the folder holds."""


def lines(old: str, new: str) -> Callable[[Path], object]:
    """The grid with some of its text replaced."""

    def bend(folder: Path) -> None:
        assert old in GRID
        (folder / "grid.yaml").write_text(GRID.replace(old, new, 1))

    return bend


def more(text: str) -> Callable[[Path], object]:
    """The grid with lines added; the first of them is line 13."""
    return lambda folder: (folder / "grid.yaml").write_text(GRID + textwrap.dedent(text))


def whole(content: str | bytes, name: str = "grid.yaml") -> Callable[[Path], object]:
    """Other content of a file."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def coco(change: Callable[[dict], object], split: str = "train") -> Callable[[Path], object]:
    """The annotations of one split with a change."""

    def bend(folder: Path) -> None:
        path = folder / "coco" / "annotations" / f"instances_{split}.json"
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))

    return bend


def each_image(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same damage to all training images."""
    return lambda folder: [spoil(path) for path in (folder / "coco/images").glob("train*")]


def half(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def study_of_another_name(folder: Path) -> None:
    """A folder of results that belongs to another grid."""
    (folder / "elsewhere").mkdir()
    known = {"format": 1, "name": "other", "factors": {}, "cells": [], "grid": {}}
    (folder / "elsewhere" / "grid.json").write_text(json.dumps(known))


def half_a_study(folder: Path) -> None:
    """A folder of results whose description is cut off."""
    study_of_another_name(folder)
    half(folder / "elsewhere" / "grid.json")


TRAIN = r"coco/annotations/instances_train\.json"

YAML = {
    "no such grid": Bad("none.yaml", "no such file.*path of a grid", "run-grid none.yaml"),
    "a folder as grid": Bad("coco", "give a YAML file", "run-grid coco"),
    "bytes as grid": Bad("grid.yaml", "give a YAML file", bend=whole(bytes(range(128, 255)))),
    "an empty grid": Bad("grid.yaml", "a mapping with keys such as name", bend=whole("")),
    "a list as grid": Bad("grid.yaml", "a mapping with keys such as name", bend=whole("- 1\n")),
    "an open bracket": Bad("grid.yaml:2", "not valid YAML.*expected", bend=whole("name: [a\n")),
    "a tab": Bad("grid.yaml:3", "'\\\\t'", bend=lines("  name: good", "\tname: good")),
    "code in YAML": Bad(
        "grid.yaml:1",
        "not valid YAML.*python/object",
        bend=lines("name: good", "name: !!python/object/apply:pathlib.Path.touch [ran]"),
    ),
    "an unknown key": Bad(
        "grid.yaml:13: .*'trian'", "did you mean 'train'", bend=more("trian: {epochs: 1}")
    ),
    "an unknown setting": Bad(
        "grid.yaml:9: .*'train.bach_size'",
        "did you mean 'batch_size'",
        bend=lines("batch_size", "bach_size"),
    ),
    "a key twice": Bad(
        "grid.yaml:13: .*'seeds'|grid.yaml:14", "remove one", bend=more("seeds: [0]\nseeds: [1]")
    ),
    "no model": Bad("grid.yaml: .*'model'", "missing; add it", bend=whole("name: good\n")),
    "a name with a slash": Bad(
        "grid.yaml:1: name: .*'../x'", "match pattern", bend=lines("name: good", "name: ../x")
    ),
    "an unknown axis": Bad(
        "grid.yaml:12: .*'widht'", "did you mean 'width'", bend=lines("width", "widht")
    ),
    "an unknown path": Bad(
        "grid.yaml:11: .*'train.rate'", "valid: .*train.lr", bend=lines("lr:", "train.rate:")
    ),
    "an axis without values": Bad(
        "grid.yaml:12: .*'width'", "at least one", bend=lines("[2]", "[]")
    ),
    "an axis that is no list": Bad(
        "grid.yaml:12: matrix.width", "valid list", bend=lines("[2]", "2")
    ),
    "a value twice": Bad(
        "grid.yaml:11: .*'lr'", "remove one", bend=lines("[1e-2, 1e-3]", "[1e-3, 0.001]")
    ),
    "seeds as an axis": Bad(
        "grid.yaml:11", "under the key 'seeds'", bend=lines("lr: [1e-2, 1e-3]", "seed: [1, 2]")
    ),
    "a negative rate": Bad(
        "grid.yaml:11: train.lr", "greater than 0.*'-1'", bend=lines("1e-2", "-1")
    ),
    "text for a number": Bad(
        "grid.yaml:9: train.batch_size: .*'many'", "integer", bend=lines("size: 4", "size: many")
    ),
    "not one of the choices": Bad(
        "grid.yaml:9: train.precision: .*'fp8'",
        "'fp32', 'bf16' or 'auto'",
        bend=lines("batch_size: 4", "precision: fp8"),
    ),
    "no seeds": Bad("grid.yaml:13: seeds", "at least 1", bend=more("seeds: []")),
    "a negative seed": Bad("grid.yaml:13: .*seed", "equal to 0.*'-1'", bend=more("seeds: [-1]")),
    "all excluded": Bad(
        "grid.yaml:13", "every cell .* excluded", bend=more("exclude: [{width: 2}]")
    ),
    "an exclusion of nothing": Bad(
        "grid.yaml:13", "values must be of the matrix", bend=more("exclude: [{width: 3}]")
    ),
    "an exclusion of an unknown axis": Bad(
        "grid.yaml:13: .*'with'", "did you mean 'width'", bend=more("exclude: [{with: 3}]")
    ),
    "an unknown model": Bad(
        "grid.yaml:3: .*'hw6net'",
        "did you mean 'hw5net'.*package.module:factory",
        bend=lines("good_nets:net", "hw6net"),
    ),
    "a model of no module": Bad(
        "grid.yaml:3: .*'nowhere'",
        "not installed, not in the current folder",
        bend=lines("good_nets:net", "nowhere:net"),
    ),
    "a model that its module lacks": Bad(
        "grid.yaml:3: .*'nett'", "did you mean 'net'", bend=lines("good_nets:net", "good_nets:nett")
    ),
    "an unknown argument": Bad(
        "grid.yaml:4: .*'depth'",
        "valid: n_classes, width",
        bend=lines("data:", "  args: {depth: 3}\ndata:"),
    ),
    "an unknown initialisation": Bad(
        "grid.yaml:12: .*'kaimin'", "kaiming", bend=lines("width: [2]", "init: [kaimin]")
    ),
}

ARGUMENTS = {
    "no grid": Bad("GRID.yaml", "Missing argument", "run-grid"),
    "an unknown option": Bad("--job", "--jobs", "run-grid grid.yaml --job 1"),
    "an unknown command": Bad("'run-gird'", "run-grid", "run-gird grid.yaml"),
    "one argument too many": Bad("more.yaml", "unexpected", "run-grid grid.yaml more.yaml"),
    "no processes": Bad("--jobs 0", "1 or more, or auto", "run-grid grid.yaml --jobs 0"),
    "no number of processes": Bad("--jobs ni", "or auto", "run-grid grid.yaml --jobs ni"),
    "an unknown engine": Bad(
        "unknown engine 'lokal'", "did you mean 'local'", "run-grid grid.yaml --engine lokal"
    ),
    "an override without a value": Bad(
        "--set train.epochs:", "key.path=value", "run-grid grid.yaml --set train.epochs"
    ),
    "an override of an unknown key": Bad(
        "--set trian.epochs=1:",
        "did you mean 'train'",
        "run-grid grid.yaml --set trian.epochs=1",
    ),
    "an override that is no YAML": Bad(
        r"--set train\.epochs=\[:",
        "the value is no YAML",
        "run-grid grid.yaml --set train.epochs=[",
    ),
    "an override of the wrong type": Bad(
        "--set train.epochs=few: train.epochs",
        "integer",
        "run-grid grid.yaml --set train.epochs=few",
    ),
    "results of another grid": Bad(
        "elsewhere: .*'other'",
        "give another folder",
        "run-grid grid.yaml --runs elsewhere",
        study_of_another_name,
    ),
    "a file where results go": Bad(
        "good_nets.py", "give another folder", "run-grid grid.yaml --runs good_nets.py"
    ),
    "a report below a file": Bad(
        r"good_nets\.py/x\.html",
        "give another file",
        "run-grid grid.yaml --out good_nets.py/x.html",
    ),
    "a report where a folder is": Bad(
        r"grids\.html/good\.html: .*folder",
        "give another file",
        "run-grid grid.yaml --out grids.html",
        lambda folder: (folder / "grids.html" / "good.html").mkdir(parents=True),
    ),
    "a page of a probe below a file": Bad(
        r"good_nets\.py/x\.html",
        "give another file",
        "probe good_nets:net --input 3,8,8 --html good_nets.py/x.html",
    ),
    "a COCO folder that is not there": Bad(
        "nowhere", "give the folder that holds the data set", "run-grid grid.yaml --data nowhere"
    ),
    "a report of nothing": Bad("coco: holds no study", "folder that run-grid wrote", "report coco"),
    "a report of a damaged study": Bad(
        r"elsewhere/grid\.json: damaged", "run the grid again", "report elsewhere", half_a_study
    ),
    "a diagnosis of no trace": Bad(
        "grid.yaml", r"that Trace\.save\(\) wrote", "diagnose grid.yaml"
    ),
    "a diagnosis of nothing": Bad("none.parquet", "no such file; give", "diagnose none.parquet"),
    "a probe without inputs": Bad("--input", "--input-file", "probe good_nets:net"),
    "a probe of a wrong shape": Bad(
        "--input '3,x'", "for example --input 3,64,64", "probe good_nets:net --input 3,x"
    ),
}

DATA = {
    "no folder": Bad("data.root", "set data.root: FOLDER", bend=lines("  root: coco\n", "")),
    "an unknown source": Bad(
        "data.source: .*'coko'", "did you mean 'coco'", bend=lines("coco\n  root: coco", "coko")
    ),
    "no annotations": Bad(
        "coco/images",
        r"expected annotations/instances_train\.json",
        "run-grid grid.yaml --data coco/images",
    ),
    "one split only": Bad(
        r"instances_val\.json",
        "both splits are needed",
        bend=lambda folder: (folder / "coco/annotations/instances_val.json").unlink(),
    ),
    "annotations cut off": Bad(
        TRAIN, "JSON", bend=lambda folder: half(folder / "coco/annotations/instances_train.json")
    ),
    "annotations that are no COCO": Bad(
        TRAIN, "COCO", bend=whole('{"cats": 3}', "coco/annotations/instances_train.json")
    ),
    "an unknown class": Bad(
        "'unicorn'", "valid: cat, dog", bend=lines("  size: 8", "  size: 8\n  classes: [unicorn]")
    ),
    "a class without images": Bad(
        "'cow'",
        "no image in the train split",
        bend=lambda folder: (
            lines("  size: 8", "  size: 8\n  classes: [cat, cow]")(folder),
            coco(lambda table: table["categories"].append({"id": 21, "name": "cow"}))(folder),
        ),
    ),
    "an annotation of no image": Bad(
        TRAIN,
        "image_id.*999|999.*image",
        bend=coco(lambda table: table["annotations"][0].update(image_id=999)),
    ),
    "an annotation of no category": Bad(
        TRAIN,
        "category_id.*999|999.*categor",
        bend=coco(lambda table: table["annotations"][0].update(category_id=999)),
    ),
    "images that are not there": Bad(
        rf"{TRAIN}.*train1\.png", "put the images there", bend=each_image(Path.unlink)
    ),
    "images cut off": Bad(
        r"train\d\.png", "restore the files or raise the limit", bend=each_image(half)
    ),
    "images that are none": Bad(
        r"train\d\.png",
        "restore the files or raise the limit",
        bend=each_image(lambda path: path.write_text("<html>404</html>")),
    ),
    "class folders without images": Bad(
        "elsewhere",
        r"train/CLASS|class folders",
        bend=lambda folder: (
            (folder / "elsewhere").mkdir(),
            lines("source: coco\n  root: coco", "source: folder\n  root: elsewhere")(folder),
        ),
    ),
    "one's own images: the factory raises": Bad(
        "good_nets:raises.*no disk",
        r"mend it or data\.args",
        bend=lines("source: coco\n  root: coco", "source: good_nets:raises"),
    ),
    "one's own images: no data set": Bad(
        "good_nets:number",
        r"\(train, val\)|map-style",
        bend=lines("source: coco\n  root: coco", "source: good_nets:number"),
    ),
    "one's own images: not all are images": Bad(
        "good_nets:ragged",
        "tensor|image",
        bend=lines("source: coco\n  root: coco", "source: good_nets:ragged"),
    ),
}

CASES = {
    f"{kind}: {name}": bad
    for kind, table in {"yaml": YAML, "arguments": ARGUMENTS, "data": DATA}.items()
    for name, bad in table.items()
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder holds good input."""
    write_good_input(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("good_nets", None)


def call(args: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["gradscope", *args.split()])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0), *capsys.readouterr()


def check(bad: Bad, code: int, out: str, err: str) -> None:
    """Exit code 2 and one line, which names the place and the remedy."""
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: "), err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert re.search(bad.place, err), err
    assert re.search(bad.remedy, err), err


def test_the_good_input_is_good(folder, monkeypatch, capsys):
    """Each case below fails for its own reason: unspoilt, the same input is accepted."""
    code, out, err = call("run-grid grid.yaml --dry-run", monkeypatch, capsys)
    assert code == 0
    assert "error" not in err  # a slow machine may tell its progress there
    assert "2 of the cells to train" in out


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(folder, monkeypatch, capsys, name):
    """Exit code 2, one line with place and remedy, and nothing was done before it."""
    bad = CASES[name]
    bad.bend(folder)
    check(bad, *call(bad.args, monkeypatch, capsys))
    assert not (folder / "runs").exists(), "work was spent"
    assert not (folder / "reports").exists()
    assert not (folder / "ran").exists(), "code in YAML was run"


@pytest.mark.parametrize(
    "name", ["yaml: an unknown axis", "arguments: no processes", "data: images cut off"]
)
def test_the_console_script_says_the_same(folder, name):
    """One case of each kind through the installed command, in a process of its own."""
    bad = CASES[name]
    bad.bend(folder)
    script = Path(sys.executable).parent / "gradscope"
    ended = subprocess.run(
        [script, *bad.args.split()], capture_output=True, text=True, check=False, cwd=folder
    )
    check(bad, ended.returncode, ended.stdout, ended.stderr)


def test_there_are_at_least_thirty_kinds():
    """YAML, arguments and data each have their share."""
    assert len(CASES) >= 30
    assert min(map(len, (YAML, ARGUMENTS, DATA))) >= 10
