"""The checks that are no tests of behaviour: format, lint, types, layers."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=" ".join,
)
def test_clean(command):
    """The tool finds nothing."""
    tool = BIN / command[0]
    if not tool.exists():
        pytest.skip(f"{command[0]} is not installed; pip install 'gradscope-torch[test]'")
    found = subprocess.run(
        [tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_stray_module_breaks_the_layers(tmp_path):
    """The layer check can fail: a module outside the layers is refused."""
    if not (BIN / "lint-imports").exists():
        pytest.skip("import-linter is not installed")
    import shutil

    shutil.copytree(ROOT / "gradscope", tmp_path / "gradscope")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "gradscope" / "utils.py").write_text("")
    found = subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": str(BIN)},
    )
    assert found.returncode != 0
    assert "utils" in found.stdout


def test_modules_are_small():
    """Half of the modules have at most 120 lines, and no file of Python or C more than 400."""
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for suffix in ("py", "c", "h")
        for path in (ROOT / "gradscope").rglob(f"*.{suffix}")
    }
    modules = {name: n for name, n in lines.items() if name.endswith(".py")}
    assert len(modules) > 100
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert statistics.median(modules.values()) <= 120
