"""Every figure of docs/study.md and README's words on the study stands in the published tables."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

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


def difference(metric, group, reference):
    """Mean over seeds of group - reference, paired by seed, with Student's 95 % interval."""
    cells = study_figures.table("hw5-study", "cells")
    of = {
        (model, lr): own.set_index("seed")[metric]
        for (model, lr), own in cells.groupby(["factor.model", "factor.lr"])
    }
    pairs = (of[group] - of[reference]).to_numpy()
    assert len(pairs) == 3
    half = stats.t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / np.sqrt(len(pairs))
    return pairs.mean() - half, pairs.mean(), pairs.mean() + half


FAST, SLOW = ("HW5Net", "0.001"), ("HW5Net", "2e-5")


def test_the_slow_rate_ends_with_the_lower_training_loss():
    """The original's first observation holds: the whole interval lies below zero."""
    low, middle, high = difference("log10_loss", SLOW, FAST)
    assert low < middle < high < 0
    told = study_figures.of_study()["effect.loss.lr"]
    assert told == f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def test_the_slow_rate_is_not_shown_to_judge_new_images_worse():
    """The original's second is not shown: the difference is above zero, its interval spans it."""
    low, middle, high = difference("val_accuracy", SLOW, FAST)
    assert low < 0 < middle < high
    told = study_figures.of_study()["effect.accuracy.lr"]
    assert told == f"{100 * middle:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


@pytest.mark.parametrize("net3", ["Net3 Xavier", "Net3 default"])
def test_hw5net_is_not_shown_to_beat_net3(net3):
    """Below HW5Net on average with an interval that spans zero; above it where training starts."""
    low, middle, high = difference("val_accuracy", (net3, "0.001"), FAST)
    assert low < middle < 0 < high
    told = study_figures.of_study()["effect.accuracy." + net3.lower().replace(" ", "_")]
    assert told == f"{100 * middle:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    cells = study_figures.table("hw5-study", "cells")
    started = cells[(cells["factor.model"] == net3) & (cells.verdict != "dead")]
    fast = cells[(cells["factor.model"] == FAST[0]) & (cells["factor.lr"] == FAST[1])]
    assert started.val_accuracy.mean() > fast.val_accuracy.mean()


def test_cells_trained_again_fall_where_one_more_seed_would():
    """The prediction interval by hand: seeds of the verdict, their variance pooled."""
    again = pd.read_csv(study_figures.ROOT / "reports" / "retrained.csv")
    assert set(again.study) == {"hw5-study", "hw5-coco"}
    for row in again.itertuples():
        cells = study_figures.table(row.study, "cells").set_index("cell")
        cell = cells.loc[next(name for name in cells.index if name.startswith(f"{row.cell}-"))]
        assert row.published == pytest.approx(cell.val_accuracy)
        seeds = [
            own.val_accuracy.to_numpy()
            for _, own in cells[cells.verdict == cell.verdict].groupby("variant")
        ]
        own = next(s for s in seeds if cell.val_accuracy in s)
        freedom = sum(len(s) - 1 for s in seeds)
        variance = sum(s.var() * len(s) for s in seeds) / freedom
        half = stats.t(freedom).interval(0.95)[1] * np.sqrt(variance * (1 + 1 / len(own)))
        assert row.low == pytest.approx(own.mean() - half)
        assert row.high == pytest.approx(own.mean() + half)
        assert row.low < row.again < row.high


def test_the_demo_tells_the_study_in_small():
    """With skips and batch norm all learn at 1e-3, and less at 2e-5; without skips none does."""
    cells = study_figures.table("hw5", "cells")
    skip, norm, fast = (
        cells[f"factor.{name}"] == value
        for name, value in (("skip", "yes"), ("batch_norm", "yes"), ("lr", "0.001"))
    )
    healthy = cells[skip & norm & fast]
    slow = cells[skip & norm & ~fast]
    assert len(healthy) == len(slow) == 4
    assert healthy.val_accuracy.min() >= 0.6
    assert set(healthy.verdict) == {"healthy"}
    assert cells[~skip].val_accuracy.max() < healthy.val_accuracy.min() - 0.2
    assert slow.val_accuracy.max() < healthy.val_accuracy.min() - 0.05
