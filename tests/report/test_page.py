"""The page in a real browser with the network off."""

import json
import math
import random
import re

import pandas as pd
import pytest

from gradscope.report import labels, write_report
from gradscope.report.embed import embedded

CHARTS = (
    "map", "profile", "chi", "ratio", "heat", "effects", "interactions", "loss", "val-loss",
    "accuracy", "accuracy-epoch", "gap", "classes", "confusion",
)  # fmt: skip


def test_every_figure_is_drawn_offline(reference_page, open_page):
    """All figures are there and not empty; no request but the file itself, no complaint."""
    with open_page(reference_page) as visit:
        visit.draw_all()
        found = visit.page.evaluate(
            """[...document.querySelectorAll('.chart')].map(chart => [chart.dataset.chart,
              [...chart.querySelectorAll('.plot')].filter(p => !p.closest('[hidden]')).map(p =>
                [p.clientWidth, p.clientHeight,
                 p.querySelectorAll('.scatterlayer .js-line, .scatterlayer .point, .hm image').length
                ])])"""
        )
        assert [name for name, _ in found] == list(CHARTS)
        for name, plots in found:
            assert plots, name
            for width, height, marks in plots:
                assert width > 200, name
                assert height > 100, name
                assert marks > 0, name
        assert visit.complaints == []
        assert visit.requests == [reference_page.as_uri()]


def test_policy_forbids_everything_but_the_page_itself(reference_page, open_page):
    """A script, a style sheet, an image and a request that were injected do nothing."""
    failures = []
    with open_page(reference_page) as visit:
        visit.page.on("requestfailed", lambda request: failures.append(request.failure))
        visit.page.evaluate(
            """() => {
              const script = document.createElement('script');
              script.textContent = 'window.ran = true';
              document.body.append(script);
              const image = new Image();
              image.src = 'https://example.org/pixel.png';
              document.body.append(image);
              return fetch('https://example.org/').catch(() => 0);
            }"""
        )
        assert visit.page.evaluate("window.ran === undefined")
        visit.page.wait_for_timeout(100)
        assert set(failures) == {"csp"}
        refused = " ".join(visit.complaints)
        for directive in ("script-src", "img-src", "connect-src"):
            assert directive in refused


def test_names_from_outside_are_text(studies, tmp_path, open_page):
    """Markup in names of cells, factors, layers, classes and files is shown and never run."""
    hostile = studies.HOSTILE
    study = studies.make_study(
        tmp_path / "runs",
        {hostile: [hostile, "b & c"], "x": [1, 2]},
        name=hostile,
        classes=(hostile, "<b>bold</b>", "%{x}"),
        trace=lambda point: {"prefix": f"{hostile}."},
        slope=lambda point, seed: -0.3 * point["x"],
        accuracy=lambda point, seed: 0.3 * point["x"],
    )
    page = write_report(study, tmp_path / "a<b>&.html")
    with open_page(page) as visit:
        visit.draw_all()
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate("document.querySelectorAll('img').length") == 0
        assert visit.page.inner_text("h1") == hostile
        legends = visit.page.eval_on_selector_all("legend", "all => all.map(e => e.textContent)")
        assert hostile in legends
        ticks = " ".join(
            visit.page.eval_on_selector_all(".plot text", "all => all.map(e => e.textContent)")
        )
        assert "onerror=alert(1)>" in ticks
        assert "<b>bold</b>" in ticks
        assert "%{x}" in ticks
        assert visit.complaints == []


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "a & b", "\u2028", '"', "\\"])
def test_embedded_json_cannot_end_its_element(text):
    """What is embedded holds no markup, and reads back as it was."""
    found = str(embedded({text: [text]}))
    assert not re.search(r"[<>&\u2028]", found)
    assert json.loads(found) == {text: [text]}


def read_table(page, name):
    """A table that stands beside a page."""
    return pd.read_csv(page.with_suffix(".tables") / f"{name}.csv")


@pytest.mark.parametrize("page", ["reference_page", "seeded_page"])
def test_numbers_on_the_page_are_those_of_the_tables(page, request, open_page):
    """Twenty numbers drawn at random from the DOM equal the rows of the files beside it."""
    path = request.getfixturevalue(page)
    with open_page(path) as visit:
        shown = visit.page.eval_on_selector_all(
            "td.num[data-table]",
            "all => all.map(e => [e.dataset.table, +e.dataset.row, e.dataset.column, e.textContent])",
        )
    frames = {name: read_table(path, name) for name in {s[0] for s in shown}}
    for table, row, column, text in random.Random(7).sample(shown, 20):
        value = frames[table].loc[row, column]
        if text == labels.MISSING:
            assert math.isnan(value)
            continue
        scale = 100 if text.endswith("%") else 1
        digits = text.replace(labels.MINUS, "-").rstrip(" %s")
        if "min" in digits:
            continue
        unit = 10.0 ** -len(digits.partition(".")[2].partition("e")[0])
        exponent = float("1e" + (digits.partition("e")[2] or "0"))
        assert float(digits) == pytest.approx(scale * value, abs=0.51 * unit * exponent)
