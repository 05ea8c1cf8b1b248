"""The README tells the truth: its snippets run, its grid loads, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import gradscope

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The fenced blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every gradscope command line in the README."""
    lines = (line for block in blocks("bash") for line in block.splitlines())
    found = (re.search(r"(?:^|bin/)gradscope (.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_python_snippets_run(tmp_path, monkeypatch, capsys):
    """All Python blocks run one after the other, as a reader would type them; then their tests."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(block, names)
    names["test_gradients_are_healthy"]()
    printed = capsys.readouterr().out
    assert "vanishing" in printed  # twelve sigmoids
    assert "healthy" in printed  # ResNet-18
    assert len(gradscope.Trace.load("run.parquet")) > 0
    assert Path("flow.html").stat().st_size > 10_000


def test_the_grid_in_the_readme_loads(tmp_path):
    """The YAML block is a valid grid of twelve cells."""
    from gradscope.ablation.grid import Grid

    path = tmp_path / "norms.yaml"
    path.write_text(blocks("yaml")[0])
    assert len(Grid.load(path).cells()) == 12
    assert yaml.safe_load(blocks("yaml")[0])["name"] == "norms"


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments):
    """Every command line in the README is understood, to the last option."""
    from gradscope.cli.app import app

    command = get_command(app)
    context = command.make_context("gradscope", list(arguments), resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.commands[name]
    parser = command.make_parser(context)
    parser.parse_args(rest)


def test_every_command_is_in_the_readme():
    """No command is left undocumented."""
    from gradscope.cli.app import app

    assert {c.name for c in get_command(app).commands.values()} <= {a[0] for a in commands()}


def test_the_first_screen_has_two_commands():
    """Two commands come first: one runs the main job, one the tests."""
    first, second = blocks("bash")[:2]
    assert "run-grid ablations/hw5.yaml" in first
    assert "pytest" in second
    assert len(first.strip().splitlines()) == len(second.strip().splitlines()) == 1
    assert README.index(second) < 2000
