"""The page in a real browser with the network off."""

import json
import math
import random
import re

import pandas as pd
import pytest

from gradscope.report.embed import embedded
from gradscope.report.write import write_report
from gradscope.study import labels

CHARTS = (
    "map", "profile", "chi", "ratio", "heat", "updates", "update-steps", "weight-norms",
    "activations", "grad-norm", "effects", "interactions", "loss", "val-loss", "accuracy",
    "accuracy-epoch", "gap", "classes", "pooled", "confusion",
)  # fmt: skip


def test_every_figure_is_drawn_offline(reference_page, open_page):
    """All figures are there and not empty; no request but the file itself, no complaint."""
    with open_page(reference_page) as visit:
        visit.draw_all()
        found = visit.page.evaluate(
            """[...document.querySelectorAll('.chart')].map(chart => [chart.dataset.chart,
              [...chart.querySelectorAll('.plot')].filter(p => !p.closest('[hidden]')).map(p =>
                [p.clientWidth, p.clientHeight,
                 p.querySelectorAll('.js-line, .scatterlayer .point, .hm image').length
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
        legends = visit.page.eval_on_selector_all("#filters legend", "all => all.map(e => e.textContent)")
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
            "all => all.map(({dataset: d, textContent: t}) => [d.table, +d.row, d.column, t])",
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


def test_filters_act_on_everything(reference_page, open_page):
    """A level switched off leaves its rows, lines, panels and marks; the rest stays."""
    with open_page(reference_page) as visit:
        page = visit.page
        visit.draw_all()
        assert page.inner_text("#filter-state") == "all 32 cells"
        page.locator("#filters label", has_text="kaiming").click()
        assert page.inner_text("#filter-state") == "16 of 32 cells"
        visit.draw_all()
        rows = page.eval_on_selector_all(
            "#cells tbody tr", "all => all.filter(r => !r.hidden).map(r => r.innerText)"
        )
        assert len(rows) == 16
        assert all("xavier" in row for row in rows)
        page.evaluate("document.querySelector('#figure-profile').scrollIntoView()")
        page.wait_for_timeout(300)
        lines = page.eval_on_selector_all(
            "#figure-profile .scatterlayer > .trace",
            "all => all.map(e => e.style.display !== 'none')",
        )
        assert lines.count(True) == lines.count(False) > 0
        panels = page.eval_on_selector_all(
            "#figure-heat .panel h4", "all => all.filter(e => e.offsetParent).map(e => e.innerText)"
        )
        assert len(panels) == 16
        assert all("xavier" in title for title in panels)
        page.evaluate("document.querySelector('#figure-map').scrollIntoView()")
        page.wait_for_timeout(300)
        assert page.evaluate("document.querySelector('#figure-map .plot').data[0].z.length") == 16
        page.click("#filter-reset")
        page.wait_for_timeout(100)
        assert page.inner_text("#filter-state") == "all 32 cells"
        assert visit.complaints == []


def test_filtered_effects_are_those_of_the_variants_shown(reference_page, open_page):
    """With one depth switched off, the marks equal the mean over the pairs that are left."""
    cells = read_table(reference_page, "cells")
    left = cells[cells["factor.depth"] == 32]
    drift = left["slope"].abs().groupby(left["factor.skip"]).mean()  # the half is balanced
    expected = drift["no"] - drift["yes"]
    with open_page(reference_page) as visit:
        page = visit.page
        page.evaluate("document.querySelector('#figure-effects').scrollIntoView()")
        page.locator("#filters label", has_text="64").click()
        page.wait_for_timeout(500)
        found = page.evaluate(
            """(() => {
              const trace = document.querySelector('#figure-effects .plot').data[0];
              const i = trace.text.findIndex(t => t.startsWith('skip'));
              return [trace.x[i], trace.error_x.visible];
            })()"""
        )
        assert found[0] == pytest.approx(expected, rel=1e-4)
        assert found[1] is False
        assert page.is_visible("#effects-filtered")


def test_sorting_and_saving(reference_page, open_page):
    """A click on a heading sorts by the number; the saved CSV has the rows of the file."""
    with open_page(reference_page) as visit:
        page = visit.page
        page.click("#cells th:has-text('slope') button")
        shown = page.eval_on_selector_all(
            "#cells td[data-column=slope]", "all => all.map(e => +e.dataset.value)"
        )
        assert shown == sorted(shown)
        assert page.get_attribute("#cells th:has-text('slope')", "aria-sort") == "ascending"
        with page.expect_download() as download:
            page.click("#provenance button[data-table=cells]")
        saved = pd.read_csv(download.value.path())
        expected = read_table(reference_page, "cells")
        pd.testing.assert_frame_equal(saved, expected, rtol=1e-6, check_dtype=False)
        assert visit.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_accessible(reference_page, open_page, width, scheme):
    """axe-core finds no serious or critical violation; nothing is wider than the screen."""
    pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    with open_page(reference_page, width=width, scheme=scheme) as visit:
        visit.draw_all()
        overflow = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0
        found = Axe().run(visit.page).response["violations"]
        grave = [
            (v["id"], v["nodes"][0]["html"][:200])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert grave == []


def test_keyboard_reaches_what_can_be_done(reference_page, open_page):
    """Tab leads to the skip link, the theme, the filters and the table, and space acts."""
    with open_page(reference_page) as visit:
        page = visit.page
        reached = set()
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.className"
                    " || document.activeElement.tagName"
                )
            )
        assert {"skip", "theme", "SUMMARY", "INPUT", "sort"} <= reached
        page.focus("#theme")
        page.keyboard.press("Space")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_prints_on_light_paper(reference_page, open_page, tmp_path):
    """In print all figures are drawn, and the controls are gone."""
    with open_page(reference_page, scheme="dark") as visit:
        visit.page.pdf(path=tmp_path / "page.pdf")
        visit.page.emulate_media(media="print")
        assert not visit.page.is_visible("#filters")
        assert (tmp_path / "page.pdf").stat().st_size > 100_000
        assert visit.complaints == []


def test_the_page_is_small(reference_page):
    """The page of 32 cells is below 7 MB."""
    assert reference_page.stat().st_size < 7e6
