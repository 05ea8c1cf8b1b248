"""The README tells the truth: its snippets run, its grid loads, its commands exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pages import README, commands, parse, snippets
from typer.main import get_command

import gradscope


def test_python_snippets_run(tmp_path, monkeypatch, capsys):
    """All Python blocks run one after the other, as a reader would type them; then their tests."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in snippets(README, "python"):
        exec(snippet.text, names)
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
    path.write_text(snippets(README, "yaml")[0].text)
    assert len(Grid.load(path).cells()) == 12
    assert yaml.safe_load(path.read_text())["name"] == "norms"


@pytest.mark.parametrize("arguments", commands(README), ids=" ".join)
def test_commands_parse(arguments):
    """Every command line in the README is understood, to the last option."""
    parse(arguments)


def test_every_command_is_in_the_readme():
    """No command is left undocumented."""
    from gradscope.cli.app import app

    assert {c.name for c in get_command(app).commands.values()} <= {a[0] for a in commands(README)}


def test_the_first_screen_has_two_commands():
    """Two commands come early: one runs the main job, one the tests."""
    first, second = (
        next(each.text for each in snippets(README, "bash") if each.mark == mark)
        for mark in ("run", "test")
    )
    assert "run-grid ablations/hw5.yaml" in first
    assert "pytest" in second
    assert len(first.strip().splitlines()) == len(second.strip().splitlines()) == 1
    assert README.read_text(encoding="utf-8").index(second) < 2000
