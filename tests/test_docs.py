"""The documentation tells the truth: its snippets run, its links lead somewhere, it builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from pages import PAGES, README, ROOT, commands, inline, options, parse, snippets

from gradscope.ablation.settings import SECTIONS, GridConfig

DOCS = ROOT / "docs"
LINES = [(page, line) for page in PAGES if page != README for line in commands(page)]


def name_of(page):
    """A page as the messages of a test name it."""
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else " ".join(page)


@pytest.mark.parametrize(("page", "arguments"), LINES, ids=name_of)
def test_commands_parse(page, arguments):
    """Every command line is understood, to the last option."""
    parse(arguments)


def grids(page):
    """The YAML blocks of a page that are grids, or parts of one."""
    for each in snippets(page, "yaml"):
        document = yaml.safe_load(each.text)
        if isinstance(document, dict):
            yield document


@pytest.mark.parametrize("page", [p for p in PAGES if list(grids(p))], ids=name_of)
def test_keys_of_grids_exist(page):
    """Every setting in a YAML block is one that a grid takes."""
    for document in grids(page):
        GridConfig.model_validate({"name": "part", **document})
        for section in document.keys() & SECTIONS.keys():
            SECTIONS[section].model_validate(document[section])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_exist(page):
    """Every option that is named in a text is one of a command."""
    named = {code.partition("=")[0].split()[0] for code in inline(page) if code.startswith("--")}
    assert named <= options()


def missing(snippet):
    """Modules that a snippet needs and that are not installed."""
    kind, _, names = snippet.mark.partition(" ")
    wanted = names.replace(",", " ").split() if kind == "needs" else []
    return {name for name in wanted if importlib.util.find_spec(name) is None}


WITH_SNIPPETS = [p for p in PAGES if p != README and snippets(p, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_snippets_run(page, tmp_path):
    """A page's files are written, its Python runs in one process, then its marked shell blocks."""
    script, absent = [], set()
    for each in snippets(page):
        if each.file:
            (tmp_path / each.file).write_text(each.text, encoding="utf-8")
        elif each.language == "python":
            absent |= missing(each)
            script += [] if missing(each) else [each.text]
    if script:
        (tmp_path / "page.py").write_text("\n".join(script), encoding="utf-8")
        run(f"{sys.executable} page.py", tmp_path)
    for each in snippets(page, "bash"):
        if each.mark == "runs":
            for line in each.text.replace("\\\n", " ").splitlines():
                run(line, tmp_path)
    if absent:
        pytest.skip(f"{', '.join(sorted(absent))} not installed; the rest of the page ran")


def run(line, folder):
    """Run one line as a reader would; exit code 1 of gradscope is a verdict, no failure."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    settings = {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GRADSCOPE_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "CI": "",
    }
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**os.environ, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    allowed = (0, 1) if line.startswith("gradscope") else (0,)
    assert done.returncode in allowed, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def test_pages_lead_somewhere():
    """Every relative link of a page is a file, and every page is in a table of contents."""
    listed = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in tree.split()}
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target and "reference/" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
    written = {page for page in PAGES if DOCS in page.parents and page.name != "index.md"}
    assert written <= listed


def test_the_reference_has_a_text_for_everything(generate):
    """No column, key of a grid, argument, option or key of the JSON is without a word on it."""
    pages = [generate.columns(), generate.grid_keys(), generate.commands()]
    rows = [line for page in pages for line in page.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    assert len(rows) > 150


def test_the_reference_has_every_column(generate, tmp_path):
    """The columns of a recorded table are those of the page, in its order."""
    import torch

    import gradscope

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, histograms=True) as scope:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    named = re.findall(r"^\| `(\w+)` \|", generate.columns().partition("## ")[0], re.MULTILINE)
    assert named == list(scope.trace().to_pandas().columns)


@pytest.mark.slow
def test_the_reference_explains_every_key_of_the_json(generate):
    """What commands print has no key that the page passes over, but those that stand elsewhere."""
    for command, (document, texts) in generate.documents().items():
        keys = {key for key, _ in generate.keys_of(document)}
        below = {"[].diagnosis.", "probe.", "remedies.", "counts.", "left_out."}
        unexplained = {k for k in keys - set(texts) if not any(map(k.startswith, below))}
        assert not unexplained, command
        assert all(texts[key] for key in keys & set(texts)), command


@pytest.fixture(scope="module")
def generate():
    """The module that makes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What one built page refers to, what it loads, and the places in it that have a name."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note what a tag says."""
        given = dict(attrs)
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given.get("href", ""))
        elif given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built with warnings as errors."""
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed, reason="pip install 'gradscope-torch[docs]'")
    out = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(out)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    return out


@pytest.mark.slow
def test_the_site_refers_to_what_is_there(site):
    """Internal links end at a file and a name in it; nothing is loaded from elsewhere."""
    read = cache(Page)
    ours = [
        p
        for p in site.rglob("*.html")
        if not {"gallery", "reports"} & set(p.relative_to(site).parts)
    ]
    assert len(ours) > 5
    for path in ours:
        for target in read(path).loaded:
            assert not urlsplit(target).scheme, f"{path.name} loads {target}"
            assert not target.startswith("//"), f"{path.name} loads {target}"
        for target in [*read(path).links, *read(path).loaded]:
            link = urlsplit(target)
            if link.scheme or link.netloc:
                assert link.scheme in ("https", "mailto"), target
                assert link.scheme == "mailto" or "." in link.netloc, target
                continue
            there = (path.parent / unquote(link.path)).resolve() if link.path else path
            assert there.is_file(), f"{path.name}: {target}"
            if link.fragment and there.suffix == ".html" and there in ours:
                assert unquote(link.fragment) in read(there).names, f"{path.name}: {target}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), sheet


@pytest.mark.slow
def test_the_site_opens_from_disk(site):
    """Opened as a file, with no network, it complains of nothing and its search finds."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    import shutil

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.fill("input[name=q]", "vanishing")
        page.press("input[name=q]", "Enter")
        page.wait_for_selector("ul.search li a")
        found = page.locator("ul.search").inner_text()
        browser.close()
    assert "Verdicts and findings" in found
    assert [url for url in asked if not url.startswith("file:")] == []
    assert complaints == []
