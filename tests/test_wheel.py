"""What is installed from a wheel is whole."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import gradscope, torch
from gradscope.recording import kernels
from pathlib import Path
for module in (gradscope, kernels.compiled):
    assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
trace = gradscope.probe(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
gradscope.write_report(trace, sys.argv[2])
from gradscope.diagnosis.explain import explain
assert explain("vanishing").limits
"""


@pytest.mark.slow
def test_a_wheel_has_all_that_it_needs(tmp_path):
    """The wheel, unpacked elsewhere, records by its kernels, writes a report, explains."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    # A copy, so that what an earlier build left beside the sources cannot help.
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("reports/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "cp311-abi3" in wheel.name, "one wheel serves every later Python"
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    report = tmp_path / "report.html"
    subprocess.run(
        [sys.executable, "-c", USE, str(unpacked), str(report)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert report.stat().st_size > 10_000
