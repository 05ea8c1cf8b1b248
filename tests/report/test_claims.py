"""What the page says of effects: in a trained study, and where gradients explain nothing."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from gradscope.report import claims, sentences
from gradscope.report.write import write_report
from gradscope.study import tables
from gradscope.study.effects import effects


@pytest.fixture(scope="session")
def trained():
    """The tables of a study of 32 cells."""
    path = Path(__file__).parents[1] / "study" / "conftest.py"
    spec = importlib.util.spec_from_file_location("study_makers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tables.read(module.trained_study())


def test_an_outlier_is_named_with_what_rests_on_it(trained):
    """No statement on the loss but names the cell of loss 36.1, with the number without it."""
    said = {s.partition(":")[0]: s for s in claims.effect_sentences(effects(trained))}
    loss = said["Final training loss, log10"]
    assert (
        "skip yes \u00b7 batch_norm no \u00b7 init kaiming \u00b7 depth 64 \u00b7 lr 2e-5" in loss
    )
    named, _, carried = loss.partition("rest on")
    assert carried.count("without it") >= 3
    assert "batch_norm" not in named
    assert "skip no against yes \u221218.0 points" in said["Validation accuracy"]


def test_cells_that_do_not_learn_are_counted(trained):
    """15 cells end at chance, and the opening says so."""
    said = " ".join(sentences.opening(trained, effects(trained)))
    assert "15 of 32 cells do not learn" in said


def test_where_the_gradient_explains_nothing_it_is_said(studies, tmp_path, open_page):
    """Cells at chance with a healthy gradient, and a factor that moves accuracy alone."""

    def change(i, result):
        if result.factors["lr"] != 2e-5:
            return result
        epoch = result.history.epochs[-1]
        flat = tuple(tuple(13 for _ in range(3)) for _ in range(3))
        epoch = dataclasses.replace(
            epoch, train_loss=1.1, fit_loss=1.1, fit_accuracy=1 / 3, val_accuracy=1 / 3,
            confusion=flat,
        )  # fmt: skip
        return dataclasses.replace(
            result, history=dataclasses.replace(result.history, epochs=(epoch,))
        )

    study = studies.make_study(
        tmp_path / "runs",
        {"skip": [True, False], "lr": [1e-3, 2e-5]},
        accuracy=lambda p, s: 0.7 if p["lr"] == 1e-3 else 0.33,
        change=change,
    )
    page = write_report(study, tmp_path / "page.html")
    with open_page(page) as visit:
        opening = visit.page.inner_text("header")
        assert "2 of 4 cells do not learn" in opening
        assert "0 have an unhealthy gradient and 2 a healthy one: there the gradient" in opening
        assert "does not explain the difference that lr makes to the accuracy" in opening
        badges = visit.page.locator("#cells .badge").all_inner_texts()
        assert sum("not learning" in b for b in badges) == 2
        rests = visit.page.locator("#cells td[data-column=rests_on]").all_inner_texts()
        assert len(rests) == 4
        assert all(r.startswith("stack.0 ... stack.11") and "decades" in r for r in rests)


def test_what_would_settle_it_follows_nothing_stands_out(studies, tmp_path):
    """Noise over two seeds: no effect stands out, and the number of seeds that would do."""
    noise = iter([0.50, 0.56, 0.47, 0.60, 0.52, 0.49, 0.58, 0.41])
    study = studies.make_study(
        tmp_path / "runs", {"a": [1, 2], "b": [1, 2]}, seeds=(0, 1),
        accuracy=lambda p, s: next(noise),
    )  # fmt: skip
    said = " ".join(claims.effect_sentences(effects(tables.read(study))))
    assert "Validation accuracy: no effect stands out from the spread over seeds. The cl" in said
    assert "seeds per variant in four of five such studies" in said
