"""gradscope data coco and gradscope data demo."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from rich.console import Console
from tiny_coco import TinyCoco
from typer.testing import CliRunner

from gradscope.cli import app, data_view
from gradscope.data import ImageDataset, Splits
from gradscope.errors import DataError


@pytest.fixture
def tiny(tmp_path):
    """An empty folder to write COCO into."""
    return TinyCoco(tmp_path / "coco")


@pytest.fixture
def small(tiny):
    """Two classes, 6 training images and 4 validation images."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one * 3, "val": one * 2})
    return tiny


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command line with an own cache: (exit code, stdout, stderr)."""
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        result = CliRunner().invoke(app.app, ["data", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def test_coco_table(tiny, run):
    """The table has each class, the sums, and what was left out; the progress is on stderr."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    both = [("cat", 5.0), ("dog", 4.0)]
    tiny.write({"train": [*one * 3, both], "val": one * 2})
    code, out, err = run("coco", tiny.root, "--size", 4, "--val-per-class", 1)
    assert code == 0
    rows = {
        row[0]: row[1:]
        for row in (re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in out.splitlines())
        if len(row) == 3
    }
    assert rows["cat"] == ["3", "1"]
    assert rows["dog"] == ["3", "1"]
    assert rows["all"] == ["6", "2"]
    assert rows["left out: not drawn"] == ["0", "2"]
    assert rows["left out: two of the classes (overlap: drop)"] == ["1", "0"]
    assert "left out, no images: pizza" in out
    assert "reading train images" in err
    code, out, err = run(
        "coco", tiny.root, "--size", 4, "--overlap", "largest", "--classes", "dog,cat"
    )
    assert "left out" not in out
    assert out.index("dog") < out.index("cat")


def test_coco_json(small, run):
    """--json prints JSON and nothing else on stdout."""
    code, out, _ = run("coco", small.root, "--size", 4, "--json", "--train-per-class", 2)
    assert code == 0
    found = json.loads(out)
    assert found["counts"] == {"train": {"cat": 2, "dog": 2}, "val": {"cat": 2, "dog": 2}}
    assert found["left_out"] == {"train": {"not drawn": 2}, "val": {}}
    assert found["shape"] == [3, 4, 4]


def test_demo(run, tmp_path):
    """The command prepares the cache; --out writes the same pictures as a COCO folder."""
    few = (
        "--train-per-class",
        2,
        "--val-per-class",
        1,
        "--json",
        "--classes",
        "cat",
        "--classes",
        "dog",
    )
    code, out, _ = run("demo", *few)
    assert code == 0
    code, written, _ = run("demo", *few, "--out", tmp_path / "out")
    assert code == 0
    assert json.loads(out)["fingerprint"] == json.loads(written)["fingerprint"]
    assert len(list((tmp_path / "out" / "images").glob("*.jpg"))) == 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["coco", "nowhere"], "error: data.root: nowhere does not exist; give the folder"),
        (["coco", "{root}", "--classes", "cat,dgo"], "unknown class 'dgo'; did you mean 'dog'?"),
        (["coco", "{root}", "--overlap", "smallest"], "'drop', 'largest'"),
        (["coco", "{root}", "--size", "0"], "--size"),
        (["demo", "--out", "{root}"], "the folder is not empty; name a new one"),
    ],
)
def test_bad_input_is_one_line(small, tmp_path, monkeypatch, capsys, args, message):
    """Bad input exits with 2 and one line that starts with error."""
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "sys.argv", ["gradscope", "data", *(arg.format(root=small.root) for arg in args)]
    )
    with pytest.raises(SystemExit) as stopped:
        app.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


class Screen(io.StringIO):
    """A stream that is a terminal or a file, and what a person sees of it at the end."""

    def __init__(self, *, terminal: bool):
        super().__init__()
        self.isatty = lambda: terminal

    def lines(self) -> list[str]:
        """Lines after all movements of the cursor."""
        lines, row = [""], 0
        tokens = r"(\x1b\[[?\d;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)"
        for control, text in re.findall(tokens, self.getvalue()):
            lines[row] += text
            if control == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif control.endswith("2K"):
                lines[row] = ""
            elif control.endswith("A"):
                row -= int(control[2:-1])
        return lines


def fail_half_way():
    """Work that shows a bar and then fails."""
    with data_view.progress_bar() as progress:
        progress("reading", 1, 2)
        raise DataError


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_vanish_when_the_work_fails(monkeypatch, terminal):
    """Bars stay when all went well; after a failure its message stands alone."""
    monkeypatch.setenv("TERM", "xterm")
    good, bad = Screen(terminal=terminal), Screen(terminal=terminal)
    monkeypatch.setattr("sys.stderr", good)
    with data_view.progress_bar() as progress:
        progress("reading", 1, 2)
    assert good.lines()[0].startswith("reading")
    assert not any(good.lines()[1:])
    assert good.getvalue().count("\n") >= 1
    monkeypatch.setattr("sys.stderr", bad)
    with pytest.raises(DataError):
        fail_half_way()
    assert not any(bad.lines())
    assert terminal or not bad.getvalue()


@pytest.mark.parametrize("command", ["coco", "demo"])
def test_help_has_examples(run, command):
    """Help shows how it is used."""
    assert f"Examples: gradscope data {command}" in run(command, "--help")[1]


def test_names_are_no_markup():
    """A class that is named like markup is shown as it is."""
    images = ImageDataset(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=int))
    splits = Splits(
        images,
        images,
        classes=("[red]cat[/red]",),
        source="[bold]x",
        fingerprint="",
        notes=("[blink]note",),
        counts={"train": {"[red]cat[/red]": 1}, "val": {"[red]cat[/red]": 1}},
    )
    out = io.StringIO()
    Console(file=out, width=100).print(data_view.table(splits))
    for text in ("[red]cat[/red]", "[bold]x", "[blink]note"):
        assert text in out.getvalue()
