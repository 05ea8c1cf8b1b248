"""What `import gradscope` adds to `import torch`, and what the first use of `watch` adds to that.

    python benchmarks/import_time.py --rounds 9

Each round is a fresh process that imports torch and then times the rest; medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", MEASURE], capture_output=True, check=True, text=True
            ).stdout
        )
        for _ in range(parser.parse_args().rounds)
    ]
    names = ("import torch", "import gradscope", "gradscope.watch")
    for name, times in zip(names, zip(*rounds, strict=True), strict=True):
        low, high = min(times), max(times)
        print(f"{name:18}{statistics.median(times):7.3f} s   {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
