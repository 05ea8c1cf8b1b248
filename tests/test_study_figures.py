"""Every figure of docs/study.md and README's words on the study stands in the published tables."""

import re

import pytest

from examples import study_figures

PAGES = pytest.mark.parametrize("page", study_figures.PAGES, ids=lambda path: path.name)


@PAGES
def test_figures_are_those_of_the_tables(page):
    """Written once more from the tables, the text is as it stands."""
    text = page.read_text(encoding="utf-8")
    assert study_figures.FIGURE.search(text), "no figure is marked"
    assert study_figures.filled(text) == text


def test_no_figure_of_the_study_is_written_by_hand():
    """Results (shares, decimals) stand in marks; the rest are settings and the original's own."""
    text = study_figures.FIGURE.sub("", study_figures.PAGES[0].read_text(encoding="utf-8"))
    loose = set(re.findall(r"\d+\.\d+|\d+ %", text))
    assert loose == {"95 %", "53.55", "50.25", "39 %", "24 %"}


def test_a_figure_that_was_changed_is_noticed():
    """A text with another number is not what the tables give."""
    text = study_figures.PAGES[0].read_text(encoding="utf-8")
    name, told = study_figures.FIGURE.search(text).group("name", "text")
    wrong = text.replace(f"<!--{name}-->{told}", f"<!--{name}-->{told}9")
    assert wrong != text
    assert study_figures.filled(wrong) == text


def test_accuracies_are_counted_from_the_images():
    """Mean accuracy of the slow HW5Net, counted again from its confusion matrices."""
    confusion = study_figures.table("hw5-study", "confusion")
    own = confusion[confusion["cell"].str.startswith("HW5Net-lr2e-5")]
    right = own[own.true == own.predicted]["count"].sum() / own["count"].sum()
    assert study_figures.of_study()["hw5_slow.accuracy"] == study_figures.percent(right)
