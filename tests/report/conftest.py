"""A browser with the network off, and pages drawn once for all tests that read them."""

import importlib.util
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from gradscope.report.write import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def studies():
    """The module of makers of studies beside this file."""
    path = Path(__file__).with_name("studies.py")
    spec = importlib.util.spec_from_file_location("report_studies", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        installed = Path(playwright.chromium.executable_path)
        path = CHROMIUM or (str(installed) if installed.exists() else None)
        if path is None:
            pytest.skip("no Chromium is installed: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One page as it was opened, and everything it complained about or asked for."""

    def __init__(self, page, path):
        self.page = page
        self.path = path
        self.complaints = []
        self.requests = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")  # the policy lets nothing poll by eval

    def draw_all(self):
        """Scroll through the page, until every plot that is not hidden is drawn."""
        shown = "[...document.querySelectorAll('.plot')].filter(p => !p.closest('[hidden]'))"
        undrawn = f"{shown}.filter(p => !p.querySelector('.main-svg'))"
        for _ in range(200):
            if not self.page.evaluate(f"{undrawn}.length"):
                return
            self.page.evaluate(f"{undrawn}[0]?.scrollIntoView()")
            self.page.wait_for_timeout(30)
        raise AssertionError("some plots were never drawn")


@pytest.fixture(scope="session")
def open_page(browser):
    """A function that opens a file with the network off, for ``with``."""

    @contextmanager
    def opened(path, *, width=1400, scheme="light"):
        context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        try:
            yield Visit(context.new_page(), path)
        finally:
            context.close()

    return opened


@pytest.fixture(scope="session")
def reference_page(studies, tmp_path_factory):
    """The page of 32 variants with one seed."""
    folder = tmp_path_factory.mktemp("reference")
    return write_report(studies.reference_study(folder / "runs"), folder / "reference.html")


@pytest.fixture(scope="session")
def seeded_page(studies, tmp_path_factory):
    """The page of eight variants with three seeds each."""
    folder = tmp_path_factory.mktemp("seeded")
    factors = {"skip": [True, False], "init": ["he", "glorot"], "width": [8, 16]}
    study = studies.make_study(
        folder / "runs",
        factors,
        seeds=(0, 1, 2),
        slope=lambda p, seed: (0.0 if p["skip"] else -0.2) + 0.003 * seed * (p["width"] == 8),
        accuracy=lambda p, seed: 0.5 + 0.2 * p["skip"] + 0.05 * seed * (p["init"] == "he"),
    )
    return write_report(study, folder / "seeded.html")
