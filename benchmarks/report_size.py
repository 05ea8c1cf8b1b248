"""How long a large study takes to draw, and how large its file is.

A study of 1,000 cells (four factors of five, five, five and four levels, two seeds) with 200 layers
each is made up, and its report is drawn. Prints the times, the size, and how the page starts in
headless Chromium where there is one.

    python benchmarks/report_size.py [--cells 1000] [--layers 200] [--steps 20]
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
import time
from pathlib import Path
from types import ModuleType

from gradscope.report.write import write_report


def makers() -> ModuleType:
    """The makers of studies that the tests use."""
    path = Path(__file__).resolve().parents[1] / "tests" / "report" / "studies.py"
    spec = importlib.util.spec_from_file_location("studies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_in_browser(page: Path) -> str:
    """Milliseconds until the figures can be drawn, and the slowest of a few filters."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        return "no browser is installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_context(offline=True).new_page()
        tab.goto(page.as_uri(), timeout=120_000)
        tab.wait_for_function("document.documentElement.dataset.ready", timeout=120_000)
        ready = tab.evaluate("document.documentElement.dataset.ready")
        times = []
        for place in ("summary", "figure-map", "figure-profile", "figure-heat"):
            tab.evaluate(f"document.getElementById('{place}').scrollIntoView()")
            tab.wait_for_timeout(3000)
            tab.evaluate("document.querySelector('#filters input').click()")
            took = tab.evaluate("document.documentElement.dataset.filterMs")
            times.append(f"{place} {float(took):.0f}")
        browser.close()
    return f"ready after {float(ready):.0f} ms; filter in ms at {', '.join(times)}"


def main() -> None:
    """Make the study, draw it, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    factors = {"a": [0, 1, 2, 3, 4], "b": list("vwxyz"), "c": [1, 2, 3, 4, 5], "d": [8, 16, 32, 64]}
    while 2 * len(factors["d"]) * 125 > arguments.cells > 250:
        factors["d"].pop()
    studies = makers()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        study = studies.make_study(
            Path(folder) / "runs",
            factors,
            seeds=(0, 1),
            trace=lambda _: {"n_blocks": arguments.layers, "steps": arguments.steps},
            slope=lambda point, seed: 0.002 * (point["a"] - 2) + 0.0005 * seed,
            accuracy=lambda point, seed: 0.4 + 0.05 * point["c"] + 0.01 * seed,
        )
        made = time.perf_counter()
        page = write_report(study, Path(folder) / "large.html")
        drawn = time.perf_counter()
        print(f"{len(study.results)} cells x {arguments.layers} layers x {arguments.steps} steps")
        print(f"made in {made - begun:.1f} s, drawn in {drawn - made:.1f} s")
        print(f"file {page.stat().st_size / 1e6:.1f} MB")
        print(start_in_browser(page))


if __name__ == "__main__":
    main()
