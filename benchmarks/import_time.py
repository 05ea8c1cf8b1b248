"""What `import gradscope` adds to `import torch`, and what the first use of `watch` adds to that.

And how long the command line takes, from start to end, to answer a wrong argument.

    python benchmarks/import_time.py --rounds 9

Each round is a fresh process that imports torch and then times the rest; medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

MEASURE = """
import json, time
start = time.perf_counter()
import torch
after_torch = time.perf_counter()
import gradscope
after_gradscope = time.perf_counter()
gradscope.watch
print(json.dumps([after_torch - start, after_gradscope - after_torch,
                  time.perf_counter() - after_gradscope]))
"""

WRONG = (
    ("run-grid", "none.yaml"),
    ("run-grid", "ablations/hw5.yaml", "--set", "trian.epochs=1"),
    ("report", "nowhere"),
    ("diagnose", "none.parquet"),
    ("probe", "hw6net", "--input", "3,64,64"),
)
"""Arguments that need no torch to be refused."""


def refused_s(arguments: tuple[str, ...]) -> float:
    """Seconds of the whole process."""
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "gradscope", *arguments], capture_output=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    n_rounds = parser.parse_args().rounds
    rounds = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", MEASURE], capture_output=True, check=True, text=True
            ).stdout
        )
        for _ in range(n_rounds)
    ]
    names = ("import torch", "import gradscope", "gradscope.watch")
    for name, times in zip(names, zip(*rounds, strict=True), strict=True):
        low, high = min(times), max(times)
        print(f"{name:18}{statistics.median(times):7.3f} s   {low:.3f} to {high:.3f}")
    for arguments in WRONG:
        times = [refused_s(arguments) for _ in range(n_rounds)]
        name = " ".join(("gradscope", *arguments))
        print(f"{statistics.median(times):.3f} s   {min(times):.3f} to {max(times):.3f}   {name}")


if __name__ == "__main__":
    main()
