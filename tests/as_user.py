"""An example, as a user starts it in a folder of his own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def example(folder, name, *arguments, launcher=()):
    """Run a file of examples/ in a folder, behind the arguments of a launcher; it must end well."""
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done
