"""What can be drawn: traces, studies, several studies, partial ones; and what is refused."""

import dataclasses
import html
import math
import re

import pandas as pd
import pytest
import torch
from handwritten import Net

import gradscope
from gradscope.errors import ConfigError
from gradscope.report.write import charts, load, write_report
from gradscope.study import merge
from gradscope.study.results import History, Study

TWO = {"skip": [True, False], "depth": [8, 16]}


def opening(path):
    """The sentences of a page, as a reader sees them."""
    text = path.read_text("utf-8")
    part = text[text.index("<header") : text.index("</header>")]
    return html.unescape(part)


def test_a_single_trace(studies, tmp_path, open_page):
    """A probe or one recorded run has a page without comparisons, and it draws."""
    trace = studies.make_trace(0, slope=-0.3)
    page = write_report(trace, tmp_path / "flow.html")
    with open_page(page) as visit:
        visit.draw_all()
        assert visit.complaints == []
        assert visit.page.inner_text("#flow-title") == "Gradient flow"
        assert visit.page.query_selector("#effects") is None
        assert visit.page.query_selector("#filters") is None
        text = visit.page.inner_text("body")
        assert "cell" not in text.lower()
        assert "seed" not in text
        assert "Linear" in visit.page.inner_text("#table-layers")
        assert visit.page.inner_text("h1").startswith("Gradient flow of ")
    assert "The gradient is vanishing." in opening(page)
    assert "its norm shrinks by a factor of 2,000 (3.3 decades), 0.30 decades in a typical" in (
        opening(page)
    )


def test_what_the_verdict_on_a_run_rests_on_is_said(studies, tmp_path):
    """Each tenth of 200 steps of twelve layers, and the stretch that lost 11 times 0.3 decades."""
    said = opening(write_report(studies.make_trace(0, slope=-0.3), tmp_path / "flow.html"))
    told = re.search(
        r"The verdict rests on steps 0 to 190 \(20 recorded, gradients of 12 parameters and at 12 "
        r"outputs\): stack.0 ... stack.11 \u2212(\d\.\d+) decades\.",
        said,
    )
    assert told, said
    assert float(told[1]) == pytest.approx(3.3, abs=0.1)


@pytest.mark.parametrize(
    ("usual", "odd", "words"),
    [
        (1.2, 1e-3, "its norm shrinks by a factor of 160 (2.2 decades)."),
        (1 / 1.2, 1e3, "its norm grows by a factor of 160 (2.2 decades)."),
    ],
)
def test_no_sentence_says_that_it_gains_and_shrinks(tmp_path, usual, odd, words):
    """Ten factors one way and a larger one the other: 10 log10(1.2) - 3 is -2.21 decades in all."""
    net, norm = Net(12), 1.0
    for i in range(11, -1, -1):
        net.put("activation_grad", f"l{i}", norm=norm)
        norm *= odd if i == 6 else usual
    said = opening(write_report(net.trace(), tmp_path / "flow.html"))
    assert words in said
    verbs = {"gains", "grows"}, {"shrinks", "loses"}
    for sentence in said.split(". "):
        assert not all(each & set(sentence.split()) for each in verbs), sentence


def test_each_cell_of_a_study_says_what_its_verdict_rests_on(studies, tmp_path):
    """A column of the table: the ends of the stretch, and eleven times the decades of a block."""
    study = studies.make_study(
        tmp_path / "runs", {"skip": [True, False]}, slope=lambda p, s: 0.0 if p["skip"] else -0.4
    )
    page = write_report(study, tmp_path / "page.html").read_text("utf-8")
    told = re.findall(r'data-column="rests_on"[^>]*>stack.0 ... stack.11 (\S+) decades<', page)
    decades = [float(each.replace("\u2212", "-")) for each in told]
    assert decades == pytest.approx([0.0, -4.4], abs=0.1)


def test_a_page_opens_with_what_was_asked(studies, tmp_path):
    """The description of the grid stands above the answers, escaped, where there is one."""
    study = studies.make_study(tmp_path / "runs", {"skip": [True, False]})
    asked = dataclasses.replace(study, grid={**study.grid, "description": "Do skips <help>?"})
    told = write_report(asked, tmp_path / "asked.html").read_text("utf-8")
    above = told[told.index("</h1>") : told.index('class="opening"')]
    assert "Do skips &lt;help&gt;?" in above
    plain = write_report(study, tmp_path / "plain.html").read_text("utf-8")
    assert 'class="asked"' not in plain


def test_a_probe_has_one_step_and_no_curve_over_steps(studies):
    """What needs several steps is left out rather than drawn empty."""
    found = charts(studies.make_trace(0, steps=1))
    assert set(found) == {"profile", "chi", "updates", "weight-norms", "activations"}


def test_partial_study_says_what_is_missing(studies, tmp_path, open_page):
    """Running, pending, failed and diverged cells are counted, and left out of comparisons."""
    statuses = ["done", "running", "pending", "failed", "diverged", "done", "done", "done"]

    def change(i, result):
        status = statuses[i]
        if status in ("running", "pending", "failed"):
            result = dataclasses.replace(result, trace_path=None, history=History())
        if status == "diverged":
            broken = studies.make_history(i, accuracy=0.1, diverges_at=9)
            result = dataclasses.replace(result, history=broken)
        return dataclasses.replace(result, status=status, error="out of luck" * (i in (3, 4)))

    study = studies.make_study(tmp_path / "runs", TWO, seeds=(0, 1), change=change)
    page = write_report(study, tmp_path / "partial.html")
    said = opening(page)
    assert "1 has not run yet" in said
    assert "1 is still running" in said
    assert "1 failed" in said
    assert "1 diverged" in said
    with open_page(page) as visit:
        visit.draw_all()
        assert visit.complaints == []
        visit.page.click("#summary details > summary")
        badges = visit.page.eval_on_selector_all(
            "#cells .badge", "all => all.map(e => e.innerText)"
        )
        assert {"✓ done", "… running", "○ pending", "! failed", "✕ diverged"} <= set(badges)
        assert "step 9" in visit.page.inner_text("#summary")
    cells = pd.read_csv(tmp_path / "partial.tables" / "cells.csv")
    assert cells["final_loss"].notna().sum() == 4


def test_nothing_has_run(studies, tmp_path, open_page):
    """A study of which no cell has run has a page that says so."""

    def change(_, result):
        return dataclasses.replace(result, status="pending", trace_path=None, history=History())

    study = studies.make_study(tmp_path / "runs", TWO, change=change)
    page = write_report(study, tmp_path / "empty.html")
    assert "None of the 4 cells has a recorded gradient yet." in opening(page)
    with open_page(page) as visit:
        visit.draw_all()
        assert visit.complaints == []


def test_a_trace_that_cannot_be_read_costs_only_its_cell(studies, tmp_path):
    """A broken file is named; the other cells are drawn."""
    study = studies.make_study(tmp_path / "runs", TWO)
    study.results[0].trace_path.write_bytes(b"no parquet")
    page = write_report(study, tmp_path / "broken.html")
    assert "The trace of 1 cell could not be read." in opening(page)
    cells = pd.read_csv(tmp_path / "broken.tables" / "cells.csv")
    assert "not a readable Parquet file" in cells["error"][0]
    assert cells["slope"].notna().sum() == 3


def test_one_cell(studies, tmp_path, open_page):
    """A study of one cell has no comparisons, and says nothing of intervals."""
    study = studies.make_study(tmp_path / "runs", {"skip": [True]}, slope=lambda p, s: -0.2)
    page = write_report(study, tmp_path / "one.html")
    assert "interval" not in opening(page)
    with open_page(page) as visit:
        visit.draw_all()
        assert visit.complaints == []
        assert visit.page.query_selector("#effects") is None


def test_seeds_missing_from_some_variants(studies, tmp_path):
    """Variants with different numbers of seeds are compared over the seeds they share."""
    full = studies.make_study(
        tmp_path / "runs", TWO, seeds=(0, 1, 2), accuracy=lambda p, s: 0.4 + 0.1 * s * p["skip"]
    )
    study = dataclasses.replace(full, results=full.results[:-2])
    page = write_report(study, tmp_path / "seeds.html")
    assert "Variants have between 1 and 3 seeds." in opening(page)
    effects = pd.read_csv(tmp_path / "seeds.tables" / "effects.csv")
    skip = effects.query("metric == 'accuracy' and factor == 'skip' and by.isna()")
    assert list(skip["n_seeds"]) == [1]
    assert list(skip["n_pairs"]) == [2]


def test_two_studies_are_matched_cell_by_cell(studies, tmp_path, open_page):
    """Of two studies, each cell stands beside its counterpart, and the study is a factor."""
    first = studies.make_study(
        tmp_path / "a", TWO, name="before", slope=lambda p, s: -0.5, accuracy=lambda p, s: 0.4
    )
    second = studies.make_study(
        tmp_path / "b", TWO, name="after", slope=lambda p, s: 0.0, accuracy=lambda p, s: 0.6
    )
    page = write_report([first, second], tmp_path / "both.html")
    effects = pd.read_csv(tmp_path / "both.tables" / "effects.csv")
    found = effects.query("metric == 'slope' and factor == 'study' and by.isna()")
    assert list(found["estimate"]) == [pytest.approx(0.5, abs=0.02)]
    matched = pd.read_csv(tmp_path / "both.tables" / "matched.csv")
    assert list(matched["verdict_before"]) == ["vanishing"] * 4
    assert list(matched["verdict_after"]) == ["healthy"] * 4
    assert matched["slope_change"].tolist() == pytest.approx([0.5] * 4, abs=0.03)
    with open_page(page) as visit:
        said = visit.page.inner_text("#compared")
        assert "4 pairs of cells that differ in nothing but the study" in said
        assert "Verdicts that changed: 4 from vanishing to healthy." in said
        shown = visit.page.eval_on_selector_all(
            "#side-by-side td[data-column=val_accuracy_change]", "all => all.map(e => e.innerText)"
        )
        assert shown == [f"{v:+.3f}" for v in matched["val_accuracy_change"]]
        assert visit.complaints == []


def test_studies_of_one_name_and_other_factors_are_told_apart(studies, tmp_path):
    """Two runs of one grid are told apart by revision or number; a factor may be missing in one."""
    first = studies.make_study(tmp_path / "a", TWO)
    second = studies.make_study(tmp_path / "b", {"skip": [True, False]})
    study = merge.merged([first, second])
    assert len(set(study.factors["study"])) == 2
    assert study.factors["depth"] == (8, 16, merge.DEFAULT)
    assert len({r.id for r in study.results}) == 6


def test_charts_are_plotly_figures(studies, tmp_path):
    """Each figure can be had alone, is a plotly figure, and shows itself in a notebook."""
    study = studies.make_study(tmp_path / "runs", TWO)
    found = charts(study)
    profile = found["profile"].figures[0]
    assert type(profile).__name__ == "Figure"
    assert len(profile.data[0].y) == 12
    assert "plotly" in found["heat"]._repr_html_()
    for chart in found.values():
        assert all(figure.data for figure in chart.figures)


def test_smoothing_follows_its_definition():
    """The smoothed loss is the exponentially weighted mean, computed here by its sum."""
    from gradscope.study.reading import loss_curve

    losses = [3.0, 2.0, math.nan, 1.0]
    curve = loss_curve(History(tuple(losses)), 100)
    alpha = 2 / (3 + 1)  # the span is at least three
    known = [x for x in losses if not math.isnan(x)]
    weights = [(1 - alpha) ** (len(known) - 1 - i) for i in range(len(known))]
    expected = sum(w * x for w, x in zip(weights, known, strict=True)) / sum(weights)
    assert curve.smooth[-1] == pytest.approx(expected)
    assert math.isnan(curve.smooth[2])


def test_bad_targets_are_refused(studies, tmp_path):
    """A folder as the file, a study without cells: one line that says what would be right."""
    with pytest.raises(ConfigError, match=r"is a folder; give the name of a file"):
        write_report(studies.make_trace(0), tmp_path)
    with pytest.raises(ConfigError, match="has no cells"):
        write_report(Study("empty", {}, ()), tmp_path / "x.html")


def test_what_is_no_trace_is_refused(tmp_path):
    """A scope for its trace, a path, nothing: one line that says what would be right."""
    scope = gradscope.watch(torch.nn.Linear(1, 1))
    scope.close()
    for given, kind in ((scope, "Scope"), ("run.parquet", "str"), ({"a": scope}, "dict")):
        with pytest.raises(ConfigError, match=rf"nothing to draw in a {kind}: .*scope\.trace\(\)"):
            write_report(given, tmp_path / "x.html")
    with pytest.raises(ConfigError, match="nothing to compare"):
        write_report([], tmp_path / "x.html")


def test_command_draws_a_recorded_trace(studies, tmp_path):
    """`gradscope report run.parquet -o FILE` prints where the page lies."""
    from typer.testing import CliRunner

    from gradscope.cli.app import app

    trace = studies.make_trace(0).save(tmp_path / "run.parquet")
    done = CliRunner().invoke(app, ["report", str(trace), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert done.stdout.replace("\n", "") == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_command_refuses_what_is_no_folder_of_runs(tmp_path):
    """A missing folder is named, with what would be right."""
    with pytest.raises(ConfigError, match="no such folder; give the folder that run-grid wrote"):
        load([tmp_path / "nowhere"])


@pytest.mark.slow
def test_a_thousand_cells(studies, tmp_path, open_page):
    """A study of 1,000 cells with 200 layers each is below 40 MB and says what it thinned."""
    factors = {"a": range(5), "b": "vwxyz", "c": range(5), "d": range(4)}
    study = studies.make_study(
        tmp_path / "runs",
        {name: list(values) for name, values in factors.items()},
        seeds=(0, 1),
        trace=lambda _: {"n_blocks": 200, "steps": 20},
        slope=lambda point, seed: 0.002 * (point["a"] - 2) + 0.0005 * seed,
    )
    page = write_report(study, tmp_path / "large.html")
    assert page.stat().st_size < 40e6
    with open_page(page) as visit:
        assert "evenly chosen" in visit.page.inner_text("#figure-profile")
        assert "Thinned evenly" in visit.page.inner_text("#figure-heat")
        visit.page.evaluate("document.querySelector('#filters input').click()")
        assert visit.page.inner_text("#filter-state") == "800 of 1000 cells"
        assert visit.complaints == []


def test_a_factor_of_one_study_is_the_default_of_the_other(studies, tmp_path):
    """What a study does not vary it has all the same: of its configuration, else of the factory."""
    first = studies.make_study(tmp_path / "a", {"skip": [True, False], "lr": [1e-3, 2e-5]})

    def configured(_, result):
        config = {"model": {"name": "hw5net", "args": {}}, "train": {"lr": 1e-3}}
        return dataclasses.replace(result, config=config)

    second = studies.make_study(tmp_path / "b", {"depth": [32]}, change=configured)
    study = merge.merged([first, second])
    own = [r.factors for r in study.results if "depth" in r.factors and r.factors["depth"] == 32]
    assert own[-1]["skip"] is True  # HW5Net's own default
    assert own[-1]["lr"] == 1e-3
    assert study.factors["skip"] == (True, False)


def test_two_traces_are_laid_side_by_side(studies, tmp_path, open_page):
    """Layers are matched by name; what changed in verdict, findings, flow and updates is said."""
    before = studies.make_trace(0, slope=-0.4)
    after = studies.make_trace(1, slope=0.0, n_blocks=14)
    page = write_report([before, after], tmp_path / "two.html")
    with open_page(page) as visit:
        visit.draw_all()
        said = visit.page.inner_text("#compared")
        assert "before is vanishing, after is healthy." in said
        assert "Found in before alone: vanishing." in said
        assert "12 layers matched by name, 2 only in one of them." in said
        assert "most at stack.0" in said
        lines = visit.page.evaluate(
            """document.querySelector('#figure-profile .plot').data
              .filter(t => t.text).map(t => t.x.length)"""
        )
        assert lines == [12, 14]
        assert visit.complaints == []
        assert visit.requests == [page.as_uri()]
    matched = pd.read_csv(tmp_path / "two.tables" / "matched.csv")
    expected = matched["log10_grad_after"] - matched["log10_grad_before"]
    assert matched["log10_grad_change"].tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    assert matched["log10_grad_change"][0] == pytest.approx(0.4 * 11, abs=0.1)


def test_command_compares_two_files(studies, tmp_path):
    """`gradscope report a.parquet b.parquet`: the runs have the names of their files."""
    from typer.testing import CliRunner

    from gradscope.cli.app import app

    files = [
        str(studies.make_trace(i).save(tmp_path / f"{n}.parquet"))
        for i, n in ((0, "old"), (1, "new"))
    ]
    done = CliRunner().invoke(app, ["report", *files, "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert "chain" not in (tmp_path / "page.html").read_text("utf-8")[:3000]
    assert "Both are healthy." in (tmp_path / "page.html").read_text("utf-8")
    cells = pd.read_csv(tmp_path / "page.tables" / "cells.csv")
    assert list(cells["factor.run"]) == ["old", "new"]
    with pytest.raises(ConfigError, match="compare like with like"):
        load([tmp_path / "old.parquet", tmp_path])
