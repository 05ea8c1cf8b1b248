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
        legends = visit.page.eval_on_selector_all(
            "#filters legend", "all => all.map(e => e.textContent)"
        )
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


@pytest.mark.parametrize(
    ("width", "scheme"), [(1400, "light"), pytest.param(400, "dark", marks=pytest.mark.slow)]
)
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
        for _ in range(70):
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


MEASURED = (
    "profile", "chi", "ratio", "heat", "updates", "update-steps", "weight-norms", "activations",
    "dead", "zero", "saturated", "grad-norm", "clipping", "loss-scale", "histogram", "logged-0",
    "logged-1",
)  # fmt: skip


@pytest.fixture(scope="module")
def rich_page(studies, tmp_path_factory):
    """The page of one trace in which everything was measured."""
    trace = studies.make_trace(0, slope=-0.1, rich=True, clipped=True)
    return write_report(trace, tmp_path_factory.mktemp("rich") / "rich.html")


def test_what_was_measured_is_drawn(rich_page, open_page):
    """Updates, units, norms, clipping, scale, histograms, metrics: with the tables' numbers."""
    with open_page(rich_page) as visit:
        visit.draw_all()
        drawn = visit.page.evaluate(
            """Object.fromEntries([...document.querySelectorAll('.chart')].map(chart => {
              const trace = chart.querySelector('.plot').data.at(-1);
              return [chart.dataset.chart, trace.type === 'heatmap' ? null : trace.y];
            }))"""
        )
        assert set(drawn) == set(MEASURED)
        for key, table, column in (
            ("updates", "layers", "update_ratio"),
            ("weight-norms", "layers", "weight_norm"),
            ("dead", "outputs", "dead"),
            ("saturated", "outputs", "saturated"),
            ("clipping", "course", "clipped_to"),
            ("loss-scale", "course", "loss_scale"),
        ):
            expected = read_table(rich_page, table)[column].tolist()
            assert drawn[key] == pytest.approx(expected, rel=1e-5), key
        assert drawn["clipping"] == pytest.approx([0.5] * 20)
        assert drawn["logged-0"] == pytest.approx([2 / (i + 1) for i in range(20)])
        assert visit.complaints == []
        assert visit.requests == [rich_page.as_uri()]


@pytest.mark.parametrize("page", ["rich_page", pytest.param("seeded_page", marks=pytest.mark.slow)])
def test_pages_of_traces_and_seeds_are_accessible(page, request, open_page):
    """axe-core on the other kinds of page, in the dark and on a narrow screen."""
    pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    with open_page(request.getfixturevalue(page), width=400, scheme="dark") as visit:
        visit.draw_all()
        assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        found = Axe().run(visit.page).response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def show(visit, key):
    """Scroll to a figure and let it be drawn."""
    visit.page.evaluate(f"document.getElementById('figure-{key}').scrollIntoView()")
    visit.page.wait_for_selector(f"#figure-{key} .plot .main-svg", state="attached")
    visit.page.wait_for_timeout(200)


def test_a_click_on_a_legend_hides_and_shows(reference_page, open_page):
    """A level that is pressed leaves, in this figure alone; pressed again, it is back."""
    hidden = (
        "(key) => [...document.querySelectorAll(`#figure-${key} .scatterlayer > .trace`)]"
        ".filter(e => e.style.display === 'none').length"
    )
    with open_page(reference_page) as visit:
        show(visit, "profile")
        entry = visit.page.locator("#figure-profile .legend-key", has_text="skip no")
        entry.click()
        assert entry.get_attribute("aria-pressed") == "false"
        lines = visit.page.locator("#figure-profile .scatterlayer > .trace").count()
        assert visit.page.evaluate(hidden, "profile") == lines / 2
        show(visit, "chi")
        assert visit.page.evaluate(hidden, "chi") == 0
        show(visit, "profile")
        entry.click()
        assert visit.page.evaluate(hidden, "profile") == 0
        show(visit, "accuracy")
        visit.page.locator("#figure-accuracy .legend-key", has_text="validation").click()
        assert (
            visit.page.evaluate("document.querySelector('#figure-accuracy .plot').data.length") == 1
        )
        assert visit.complaints == []


def test_one_chooses_what_colour_and_panels_stand_for(reference_page, open_page):
    """Learning rate as colour, all in one plot: both rates in one panel, told apart by colour."""
    with open_page(reference_page) as visit:
        page = visit.page
        page.select_option("#by-colour", label="lr")
        page.select_option("#by-panel", value="none")
        show(visit, "profile")
        assert page.locator("#figure-profile .panel").count() == 1
        legend = page.locator("#figure-profile .legend-key").all_inner_texts()
        assert {"lr 0.001", "lr 2e-5"} <= {t.strip() for t in legend}
        found = page.evaluate(
            """document.querySelector('#figure-profile .plot').data
              .map(t => [t.name.replaceAll('<br>', ' '), t.line.color])"""
        )
        assert len(found) == 32
        colours = {}
        for name, colour in found:
            colours.setdefault("2e-5" in name, set()).add(colour)
        assert [len(c) for c in colours.values()] == [1, 1]
        assert colours[True] != colours[False]
        page.select_option("#by-panel", label="depth")
        show(visit, "chi")
        titles = page.locator("#figure-chi .panel h4").all_inner_texts()
        assert titles == ["depth 32", "depth 64"]
        assert visit.complaints == []


@pytest.mark.parametrize("key", ["profile", "map", "pooled"])
def test_figures_can_be_taken_along(reference_page, open_page, tmp_path, key):
    """As SVG with title, legend or scale and every panel, and as PNG of twice the size; offline."""
    from xml.etree import ElementTree as ET

    from PIL import Image

    with open_page(reference_page) as visit:
        show(visit, key)
        kept = {}
        for kind in ("svg", "png"):
            with visit.page.expect_download() as download:
                visit.page.click(f"#figure-{key} .picture[data-format={kind}]")
            kept[kind] = tmp_path / download.value.suggested_filename
            download.value.save_as(kept[kind])
        panels = visit.page.locator(f"#figure-{key} .panel:visible").count()
        title = visit.page.inner_text(f"#figure-{key} h3")
        legend = visit.page.locator(f"#figure-{key} .legend-key").all_inner_texts()
        keys = [t.strip() for t in legend]
        assert visit.complaints == []
        assert [r for r in visit.requests if not r.startswith(("blob:", "data:"))] == [
            reference_page.as_uri()
        ]
    root = ET.parse(kept["svg"]).getroot()
    inner = [e for e in root if e.tag.endswith("}svg") and "main-svg" in e.get("class", "")]
    texts = [e.text for e in root if e.tag.endswith("}text")]
    assert len(inner) == panels
    assert texts[0] == title
    assert set(keys) <= set(texts)
    with Image.open(kept["png"]) as image:
        assert image.size == (2 * int(root.get("width")), 2 * int(root.get("height")))
        assert len(image.convert("RGB").getcolors(10**7)) > 20


@pytest.mark.parametrize("width", [1400, pytest.param(400, marks=pytest.mark.slow)])
def test_tooltips_stay_inside_their_panel(reference_page, open_page, width):
    """Wherever one points, the label lies within the plot."""
    inside = """p => {
      const label = p.querySelector('.hoverlayer .hovertext');
      if (!label) return null;
      const [a, b] = [label.getBoundingClientRect(), p.getBoundingClientRect()];
      return Math.min(a.left - b.left, b.right - a.right, a.top - b.top, b.bottom - a.bottom);
    }"""
    seen = []
    with open_page(reference_page, width=width) as visit:
        for key in ("heat", "map", "pooled", "accuracy"):
            show(visit, key)
            plot = visit.page.query_selector(f"#figure-{key} .plot")
            box = plot.bounding_box()
            for x, y in ((0.35, 0.2), (0.5, 0.5), (0.7, 0.35), (0.93, 0.6)):
                visit.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
                visit.page.wait_for_timeout(150)
                seen.append((key, plot.evaluate(inside)))
    known = [(key, room) for key, room in seen if room is not None]
    assert len(known) >= 8
    assert all(room >= -1 for _, room in known), known


def test_links_lead_to_headings_that_the_bar_leaves_free(reference_page, open_page):
    """Each link of the contents leads to a heading, which then stands below the filter bar."""
    with open_page(reference_page) as visit:
        links = visit.page.eval_on_selector_all(
            ".contents a", "all => all.map(a => a.getAttribute('href').slice(1))"
        )
        assert {"summary", "findings", "provenance", "figure-map", "figure-confusion"} <= set(links)
        for place in ("flow", "figure-heat", "figure-pooled"):
            visit.page.click(f".contents a[href='#{place}']")
            visit.page.wait_for_timeout(200)
            room = visit.page.evaluate(
                f"""document.querySelector('#{place} h2, #{place} h3').getBoundingClientRect().top
                  - document.querySelector('#filters').getBoundingClientRect().bottom"""
            )
            assert room >= 0, place
            visit.page.evaluate("scrollTo(0, 0)")


def test_on_a_narrow_screen_the_answer_comes_first(reference_page, open_page):
    """At 400 pixels verdict and accuracy stand in view, and every heat map keeps its scale."""
    with open_page(reference_page, width=400) as visit:
        edges = visit.page.evaluate(
            """[...document.querySelectorAll('#cells th')].map(th =>
              [th.innerText.trim().split(/\\s/)[0], th.getBoundingClientRect().right])"""
        )
        seen = [name for name, right in edges if right <= 400]
        assert seen[:2] == ["gradient", "accuracy"]
        scales = visit.page.locator(".scale .ramp")
        assert scales.count() >= 4
        assert all(scales.nth(i).is_visible() for i in range(scales.count()))


def test_pooled_matrices_are_sums_and_follow_the_filter(reference_page, open_page):
    """The first matrix counts what the table counts; with one depth off, what is left of it."""
    table = read_table(reference_page, "confusion")
    cells = read_table(reference_page, "cells").set_index("cell")
    depth = table["cell"].map(cells["factor.depth"])

    def total(rows):
        return rows.groupby(["true", "predicted"], sort=False)["count"].sum().tolist()

    def shown(page):
        return page.evaluate(
            "document.querySelector('#figure-pooled .plot').data[0].text.flat().map(Number)"
        )

    with open_page(reference_page) as visit:
        show(visit, "pooled")
        assert shown(visit.page) == total(table)
        visit.page.locator("#filters label", has_text="64").click()
        visit.page.wait_for_timeout(400)
        assert shown(visit.page) == total(table[depth == 32])
        assert visit.complaints == []


@pytest.mark.slow
def test_print_cuts_nothing(reference_page, open_page):
    """On paper as wide as A4 every table and plot fits, and figures are kept in one piece."""
    with open_page(reference_page, width=703) as visit:
        visit.draw_all()
        visit.page.emulate_media(media="print")
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        visit.page.wait_for_timeout(300)
        wide = visit.page.evaluate(
            """[...document.querySelectorAll('table, .main-svg')]
              .filter(e => e.getClientRects().length)
              .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
              .map(e => e.id || e.getAttribute('class'))"""
        )
        assert wide == []
        kept = visit.page.eval_on_selector_all(
            ".chart", "all => all.map(e => getComputedStyle(e).breakInside)"
        )
        assert set(kept) == {"avoid"}


def test_the_page_names_images_classes_and_sizes(reference_page, open_page):
    """Classes, images of each, blocks, layers, parameter tensors and parameters stand on it."""
    with open_page(reference_page) as visit:
        facts = dict(
            visit.page.eval_on_selector_all(
                ".facts div",
                "all => all.map(e => [...e.children].map(c => c.innerText))",
            )
        )
    assert facts["classes"] == "airplane, bus, cat, dog and pizza"
    assert facts["blocks"] == "10 to 18"
    assert facts["layers with parameters"] == "10 to 18"
    assert facts["parameter tensors"] == "10 to 18"
    assert facts["parameters"] == "1,000"
    table = read_table(reference_page, "confusion")
    first = table[table["cell"] == table["cell"].iloc[0]]
    assert facts["validation images"].startswith(f"{first['count'].sum():,}: airplane ")
