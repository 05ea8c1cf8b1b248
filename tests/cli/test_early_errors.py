"""Errors that need no torch are answered before it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

ASK = """
import importlib.util, io, os, sys, tempfile
spec = importlib.util.spec_from_file_location("bad_input", {cases!r})
bad_input = importlib.util.module_from_spec(spec)
sys.modules["bad_input"] = bad_input
spec.loader.exec_module(bad_input)
from pathlib import Path
from gradscope.cli.app import main
assert "torch" not in sys.modules, "the command line itself loads it"
for name, bad in bad_input.CASES.items():
    if name.startswith("data: ") and name not in {data!r}:
        continue
    folder = Path(tempfile.mkdtemp())
    bad_input.write_good_input(folder)
    bad.bend(folder)
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.chdir(folder)
    sys.argv = ["gradscope", *bad.args.split()]
    sys.stderr = io.StringIO()
    try:
        main()
    except SystemExit as ended:
        print(name, ended.code, int("torch" in sys.modules), sep=";")
    sys.stdout.flush()
    os._exit(0)
"""

NEED_TORCH = {
    "yaml: an unknown axis",  # what a model takes, only its factory tells, and that loads torch
    "yaml: a model that its module lacks",
    "yaml: an unknown argument",
    "data: images cut off",
}
"""What asks a factory that imports torch, or reads images."""

DATA = ("data: an unknown source", "data: no folder", "data: images cut off")
"""Of the cases of bad data, those that are looked at here; most others read images."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork of one process")
def test_torch_is_not_loaded_for_an_error_that_needs_none(tmp_path):
    """Every case of bad YAML and bad arguments, but for those that ask a factory."""
    ask = ASK.format(cases=str(HERE / "test_bad_input.py"), data=DATA)
    ended = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    found = [line.split(";") for line in ended.stdout.splitlines()]
    assert len(found) > 50, ended.stdout
    assert {code for _, code, _ in found} == {"2"}
    late = {name for name, _, loaded in found if loaded == "1"}
    assert late <= NEED_TORCH, late - NEED_TORCH
    assert "data: images cut off" in late, "this test could not fail"
