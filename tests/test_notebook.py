"""The example notebook is kept as it was executed, and executes still."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebook.ipynb"

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def outputs(notebook):
    """Of each code cell the MIME types of its outputs, and what a notebook shows of it."""
    return [
        [(sorted(out.get("data", {})), "".join(out.get("data", {}).get("text/html", "")))
         for out in cell["outputs"]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]  # fmt: skip


def badges(notebook):
    """The verdicts and states that it shows, in order."""
    shown = "".join(html for cell in outputs(notebook) for _, html in cell)
    return re.findall(r"<span [^>]*background:[^>]*>([^<]+)</span>", shown)


@pytest.fixture
def notebook():
    """As it is kept."""
    return json.loads(NOTEBOOK.read_text())


def test_it_is_kept_executed_and_small(notebook):
    """Every cell but the first shows something, nothing failed, nothing comes from elsewhere."""
    shown = outputs(notebook)
    assert shown[0] == []
    assert all(shown[1:])
    text = NOTEBOOK.read_text()
    assert not re.search(r"/(work|tmp|root|home|Users)/|\\\\Users", text)
    assert not re.search(r"https?://", text)
    assert '"output_type": "error"' not in text
    assert len(text) < 100_000
    assert badges(notebook) == ["closed", "vanishing", "healthy"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")  # it waits for a kernel
def test_it_executes(notebook, tmp_path):
    """In a kernel of its own: the same outputs, the same verdicts."""
    pytest.importorskip("nbclient", reason="pip install 'gradscope-torch[examples]'")
    pytest.importorskip("ipykernel", reason="pip install 'gradscope-torch[examples]'")
    bare, path, done = copy.deepcopy(notebook), tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    for cell in bare["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    path.write_text(json.dumps(bare))
    ran = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(done)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(NOTEBOOK.parents[1])},
    )
    assert ran.returncode == 0, ran.stderr
    again = json.loads(done.read_text())
    assert badges(again) == badges(notebook)
    assert [[kinds for kinds, _ in cell] for cell in outputs(again)] == [
        [kinds for kinds, _ in cell] for cell in outputs(notebook)
    ]
