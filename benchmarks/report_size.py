"""How long reports take to draw, to open and to filter, and how large their files are.

Two studies are made up, and their reports drawn: the reference study of 32 cells, and one of 1,000
cells (four factors of five, five, five and four levels, two seeds) with 200 layers each. Prints for
both the time to draw, the size, and in headless Chromium, where there is one, the time until the
page answers and the fastest of seven switches of a filter at several places.

    python benchmarks/report_size.py [--cells 1000] [--layers 200] [--steps 20] [--small]
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
from gradscope.study.results import Study


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
    """Milliseconds until the page answers, and the fastest of seven switches of a filter."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        return "no browser is installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        starts = []
        for _ in range(3):
            tab = browser.new_context(offline=True).new_page()
            tab.goto(page.as_uri(), timeout=120_000)
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            starts.append(float(tab.evaluate("document.documentElement.dataset.ready")))
        times = []
        for place in ("summary", "figure-map", "figure-profile", "figure-heat", "figure-effects"):
            tab.evaluate(f"document.getElementById('{place}').scrollIntoView()")
            tab.wait_for_timeout(3000)
            took = []
            for _ in range(7):
                tab.evaluate("document.querySelector('#filters input').click()")
                took.append(float(tab.evaluate("document.documentElement.dataset.filterMs")))
            times.append(f"{place} {min(took):.0f}")
        browser.close()
    told = ", ".join(f"{start:.0f}" for start in starts)
    return f"answers after {told} ms (three openings); filter in ms at {', '.join(times)}"


def report(name: str, study: Study, folder: Path) -> None:
    """Draw one report and print what it costs."""
    begun = time.perf_counter()
    page = write_report(study, folder / f"{name}.html")
    drawn = time.perf_counter() - begun
    print(f"{name}: {len(study.results)} cells, drawn in {drawn:.1f} s")
    print(f"  file {page.stat().st_size / 1e6:.1f} MB")
    print(f"  {start_in_browser(page)}")


def main() -> None:
    """Make the studies, draw them, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="the reference study alone")
    arguments = parser.parse_args()
    factors = {"a": [0, 1, 2, 3, 4], "b": list("vwxyz"), "c": [1, 2, 3, 4, 5], "d": [8, 16, 32, 64]}
    while 2 * len(factors["d"]) * 125 > arguments.cells > 250:
        factors["d"].pop()
    studies = makers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("reference", studies.reference_study(folder / "small"), folder)
        if arguments.small:
            return
        study = studies.make_study(
            folder / "runs",
            factors,
            seeds=(0, 1),
            trace=lambda _: {"n_blocks": arguments.layers, "steps": arguments.steps},
            slope=lambda point, seed: 0.002 * (point["a"] - 2) + 0.0005 * seed,
            accuracy=lambda point, seed: 0.4 + 0.05 * point["c"] + 0.01 * seed,
        )
        report("large", study, folder)


if __name__ == "__main__":
    main()
