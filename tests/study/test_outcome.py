"""What a cell came to: intervals by their formula, chance by arithmetic, the gap by definition."""

import math

import pytest

from gradscope.study import tables
from gradscope.study.intervals import share_interval
from gradscope.study.outcome import NOT_LEARNING, basis, chance, standing
from gradscope.study.reading import Reading, body
from gradscope.study.results import CellResult, History


def cell(epoch, status="done"):
    """A cell that ended with this epoch."""
    return CellResult("cell", {}, 0, status, {}, History((1.0,), (epoch,)))


@pytest.mark.parametrize(("hits", "of"), [(114, 250), (0, 50), (50, 50), (1, 3)])
def test_interval_is_wilsons(hits, of):
    """The formula of Wilson (1927), written out."""
    z, p = 1.959963984540054, hits / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    assert share_interval(hits, of) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert math.isnan(share_interval(0, 0)[0])


def test_chance_is_the_entropy_of_the_classes(made):
    """Five even classes: ln 5 and a fifth; uneven ones: their entropy and the most frequent."""
    assert chance(made.epoch(0.5)) == pytest.approx((math.log(5), 0.2))
    uneven = made.epoch(0.5, confusion=((90, 0), (10, 0)))
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert chance(uneven) == pytest.approx((expected, 0.9))


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        (0.20, 1.612, NOT_LEARNING),
        (0.24, 1.62, NOT_LEARNING),
        (0.30, 1.62, "done"),  # the interval of 75 of 250 lies above a fifth
        (0.20, 1.40, "done"),  # learned by heart
        (0.12, 5.00, NOT_LEARNING),
    ],
)
def test_not_learning_is_a_status(made, accuracy, loss, expected):
    """Loss not below that of chance and accuracy within it; one of them alone is not enough."""
    assert standing(cell(made.epoch(accuracy, loss))) == expected


def test_the_fit_counts_where_it_is_known(made):
    """A fit below chance is learning, whatever dropout did to the running loss; failed stays."""
    learned = made.epoch(0.2, 1.7, fit_loss=1.2, fit_accuracy=0.5)
    assert standing(cell(learned)) == "done"
    assert standing(cell(made.epoch(0.2, 1.7), "failed")) == "failed"


def test_gap_is_that_of_one_mode(made):
    """Fit less validation where the fit was measured; the running accuracy makes no gap."""
    study = made.study(lambda p, s: 0.4, factors={"a": (0, 1)}, seeds=(0,))
    assert tables.read(study).frames["cells"]["gap"].isna().all()
    epoch = made.epoch(0.4, fit_loss=0.9, fit_accuracy=0.55)
    read = tables.outcome(Reading(cell(epoch)))
    assert read["gap"] == pytest.approx(0.15)
    assert read["train_accuracy"] == 0.5


def test_trained_cells_at_chance_are_seen(made):
    """Of the 16 networks without skips, all but one end at ln 5 and a fifth of 250 images."""
    cells = tables.read(made.trained()).frames["cells"]
    idle = cells[cells["status"] == NOT_LEARNING]
    assert len(idle) == 15
    assert set(idle["factor.skip"]) == {"no"}


def test_basis_names_the_stretch_and_its_decades():
    """The finding behind the verdict, else the whole depth; nothing where nothing was judged."""
    total = {"value": -4.98, "unit": "decades"}
    found = {
        "severity": "error", "where": "conv1 ... fc", "evidence": {"total": total},
    }  # fmt: skip
    reading = Reading(cell(None), diagnosis={"verdict": "vanishing", "findings": [found]})
    assert basis(reading) == "conv1 ... fc \u22124.98 decades"
    assert basis(Reading(cell(None))) == ""


def test_the_head_is_what_follows_the_body():
    """Behind repeated blocks the head begins; in a plain chain it is the output layer alone."""
    assert body(["Conv2d", "Block", "Block", "Block", "Linear", "Linear"]) == 4
    assert body(["Linear"] * 5) == 4
    assert body(["Embedding", "Layer", "Layer", "LayerNorm", "Linear"]) == 3
    assert body(["Linear"]) == 1


def test_seeds_are_summarised_by_mean_and_deviation(made):
    """One row per variant: 40, 50 and 60 % are 50 % with a deviation of 10 points."""
    study = made.study(lambda p, s: 0.4 + 0.1 * s, factors={"a": (0, 1)})
    rows = tables.read(study).frames["variants"]
    assert list(rows["seeds"]) == [3, 3]
    assert rows["val_accuracy"].tolist() == pytest.approx([0.5, 0.5])
    assert rows["val_accuracy_sd"].tolist() == pytest.approx([0.1, 0.1])
    single = made.study(lambda p, s: 0.4, factors={"a": (0, 1)}, seeds=(0,))
    assert "variants" not in tables.read(single).frames
