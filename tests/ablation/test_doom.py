"""Cells beyond hope: stopped, audited, and told apart."""

from __future__ import annotations

import math

import pytest

from gradscope.ablation import run_grid
from gradscope.ablation.doom import chance
from gradscope.engines.task import InProcess
from gradscope.study.doomed import doomed
from gradscope.study.results import CellResult, History, Study


def doomed_grid(tiny, audit, seeds=(0, 1, 2, 3)):
    """Deep chains of sigmoids, whose gradients vanish, and shallow nets, which are well."""
    return tiny.grid(
        model={"name": "tiny_nets:chain"},
        train={"batch_size": 4, "epochs": 10},
        matrix={"deep": [True, False]},
        stop={"verdicts": ["vanishing"], "after": 0.1, "audit": audit},
        seeds=list(seeds),
    )


def test_doomed_cells_are_stopped_and_a_share_runs_on(tiny):
    """Vanishing ones stop at a tenth of their way; those that are well run to their end."""
    grid = doomed_grid(tiny, 0.0)
    study = run_grid(grid, "runs", engine=InProcess())
    total = 10 * 24 // 4
    for result in study.results:
        if result.factors["deep"]:
            assert result.status == "stopped"
            assert result.error == f"vanishing at step {total // 10} of {total}"
            assert len(result.history.step_loss) == total // 10
            assert result.trace().steps
        else:
            assert (result.status, result.doom) == ("done", "")
    found = doomed(study)
    assert (found.stopped, found.audited) == (4, 0)
    expected = 9 * sum(r.duration_s for r in study.results if r.status == "stopped")
    assert found.saved_s == pytest.approx(expected)


def test_stopped_cells_are_trained_when_nobody_stops_them_any_more(tiny):
    """Their ids are those of the same cells without `stop`; the others are kept."""
    grid = doomed_grid(tiny, 0.0, seeds=(0,))
    first = run_grid(grid, "runs", engine=InProcess())
    assert [r.status for r in first.results] == ["stopped", "done"]
    assert run_grid(grid, "runs", engine=InProcess()).results[0].status == "stopped"
    patient = tiny.grid(**{k: v for k, v in grid.source.items() if k != "stop"})
    assert [c.id for c in patient.cells()] == [c.id for c in grid.cells()]
    assert [r.status for r in run_grid(patient, "runs", engine=InProcess()).results] == ["done"] * 2


def test_audited_cells_run_to_their_end_and_are_told_apart(tiny):
    """All are audited: nothing is stopped, and it is known what stopping would have cost."""
    study = run_grid(doomed_grid(tiny, 1.0), "runs", engine=InProcess())
    assert [r.status for r in study.results] == ["done"] * 8
    assert [r.doom for r in study.results] == ["vanishing", ""] * 4
    found = doomed(study)
    assert (found.stopped, found.audited) == (0, 4)


def test_a_fifth_is_audited_by_id():
    """Over many cells the share is what was asked for, and the same cell has the same lot."""
    lots = [chance(f"cell-{i}") for i in range(10_000)]
    assert lots == [chance(f"cell-{i}") for i in range(10_000)]
    assert sum(lot < 0.2 for lot in lots) == pytest.approx(2000, abs=5 * math.sqrt(1600))


def test_the_cost_of_stopping_has_its_interval():
    """Against Clopper and Pearson's table: none of 10 is 0 to 30.85 %; and hours by hand."""

    def result(i, doom, status, accuracy):
        history = History(logged={"accuracy": ((9, accuracy),)})
        return CellResult(
            f"{i}", {}, 0, status, {}, history, duration_s=360.0, doom=doom, doomed_at=0.1
        )

    results = [result(i, "dead", "done", 0.1) for i in range(10)]
    results += [result(10 + i, "", "done", 0.9) for i in range(10)]
    results += [result(20 + i, "dead", "stopped", 0.1) for i in range(2)]
    study = Study("s", {}, tuple(results), {"objectives": {"accuracy": "max"}})
    found = doomed(study)
    assert (found.stopped, found.audited, found.good) == (2, 10, 0)
    assert found.saved_s == pytest.approx(2 * 360 * 9)
    assert found.interval == pytest.approx((0, 0.3085), abs=1e-4)
    assert str(found) == (
        "2 doomed cells were stopped early, which saved 1.8 hours; of 10 that ran on to be sure, "
        "0 ended among the better half (0 to 31 % of such cells, 95 % interval)"
    )
