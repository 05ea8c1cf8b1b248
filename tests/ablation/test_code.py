"""Digests of the user's own code: what counts as own, and what as code."""

from __future__ import annotations

import sys

import pytest

from gradscope.ablation.code import code_of


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small project; write(name, text) makes a file of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("own_top.py", "import json, torch\nfrom own_kit import blocks\nx = 1  # one\n")
    write("own_kit/__init__.py", "")
    write("own_kit/blocks.py", "from . import parts\ndef f():\n    from own_late import g\n")
    write("own_kit/parts.py", "import numpy\nfrom .. import beyond\n")
    write("own_kit/unused.py", "")
    write("own_late.py", "import own_top\ng = 2\n")
    return write


def test_the_code_is_what_the_project_imports(project):
    """Packages, relative and late imports, circles; neither torch, nor what nobody imports."""
    files = code_of("own_top")
    assert set(files) == {
        "own_top.py",
        "own_kit/__init__.py",
        "own_kit/blocks.py",
        "own_kit/parts.py",
        "own_late.py",
    }
    own = ("own_top", "own_kit", "own_late")
    assert not [name for name in sys.modules if name.startswith(own)], "it was imported"
    assert code_of("torch") == code_of("json") == code_of("gradscope.models.hw5net") == {}
    assert code_of("nowhere.at") == {}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("import json, torch\nfrom own_kit import blocks\nx = 1  # another\n", True),
        ("# first\n\nimport json, torch\nfrom own_kit import blocks\n\n\nx = 1\n", True),
        ("import json, torch\nfrom own_kit import blocks\nx = 2  # one\n", False),
        ("import json, torch\nfrom own_kit import blocks\nx = '# one'\n", False),
        ("import json, torch\nfrom own_kit import blocks\nif 1:\n    x = 1\n", False),
    ],
)
def test_comments_and_blank_lines_are_no_code(project, text, same):
    """Values, indentation and text in quotation marks are."""
    before = code_of("own_top")
    project("own_top.py", text)
    after = code_of("own_top")
    assert {n for n in before if before[n] != after[n]} == (set() if same else {"own_top.py"})


def test_text_with_blank_lines_is_code(project):
    """A blank line inside a string changes the string."""
    project("own_late.py", 'g = """a\n\nb"""\n')
    before = code_of("own_late")
    project("own_late.py", 'g = """a\nb"""\n')
    assert code_of("own_late") != before
