"""What `auto` becomes: the fastest of what was timed, once for a study, and the same ever after."""

import dataclasses
import json

import pytest

from gradscope.ablation import choice, layout, run_grid
from gradscope.ablation.choice import Choice, choose, kept
from gradscope.ablation.layout import Layout, layouts, usual
from gradscope.ablation.ways import Way, timed_ways
from gradscope.engines.placement import Resources
from gradscope.engines.task import InProcess
from gradscope.errors import ConfigError

AUTO = {"batch_size": 4, "epochs": 1, "precision": "auto"}
BOTH = {"train": AUTO, "resources": {"cpus": "auto"}}


@pytest.fixture
def machine(monkeypatch):
    """Sets how fast each (precision, processes) is, on a machine of four cores without a GPU."""
    monkeypatch.setattr(layout, "cores", lambda: 4)
    monkeypatch.setattr(layout, "devices", lambda: ())
    monkeypatch.setattr(choice, "devices", lambda: ())

    def fast(rates):
        def timed(_cell, ways, *_more):
            return {w: rates[w.precision, w.layout.jobs] for w in ways}

        monkeypatch.setattr(choice, "timed_ways", timed)

    return fast


RATES = {
    ("fp32", 4): 80.0, ("fp32", 2): 70.0, ("fp32", 1): 60.0,
    ("bf16", 4): 90.0, ("bf16", 2): 99.0, ("bf16", 1): 50.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("faster", "expected"),
    [
        ({}, ("bf16", 2)),
        ({("fp32", 1): 200.0}, ("fp32", 1)),
        ({("fp32", 2): 98.0}, ("fp32", 2)),  # bf16 is not worth it
        ({("bf16", 4): 97.9}, ("bf16", 4)),
    ],
)
def test_the_fastest_way_is_chosen_and_a_tie_goes_to_fp32_and_more_processes(
    tiny, machine, faster, expected
):
    """Four cores: 4, 2 and 1 processes, with 1, 2 and 4 threads."""
    machine(RATES | faster)
    chosen = choose(tiny.grid(**BOTH), None, print)
    assert (chosen.precision, chosen.cpus) == (expected[0], 4 // expected[1])
    assert chosen.images_per_s["bf16 with 1 process of 4 threads"] == 50
    assert "bf16 with 2 processes of 2 threads 99" in chosen.why


def test_what_the_grid_says_is_not_measured(tiny, machine):
    """Only the precision, only the layout, or a layout that the command line gives."""
    machine(RATES)
    only = choose(tiny.grid(train=AUTO), None, print)
    assert (only.precision, only.cpus, len(only.images_per_s)) == ("bf16", None, 2)
    only = choose(tiny.grid(resources={"cpus": "auto"}), None, print)
    assert (only.precision, only.cpus) == (None, 1)
    assert all(way.startswith("fp32") for way in only.images_per_s)
    given = choose(tiny.grid(**BOTH), 1, print)
    assert (given.precision, given.cpus) == ("fp32", 4)


def test_the_cells_are_those_of_a_grid_that_says_it_outright(tiny):
    """Same ids, same configurations; the layout is none of their settings."""
    auto = Choice("bf16", cpus=1).applied(tiny.grid(**BOTH))
    outright = tiny.grid(train=AUTO | {"precision": "bf16"})
    assert auto.cells() == outright.cells()
    assert auto.resources.cpus == 1
    assert {c.id for c in auto.cells()}.isdisjoint(c.id for c in tiny.grid(**BOTH).cells())


@pytest.mark.slow
def test_a_study_keeps_its_choice_on_another_machine(tiny, machine):
    """Chosen by the first run, told with the figures, taken up by the second, which would not."""
    machine(RATES)
    told = []

    class Listener:
        """Keeps the lines of the plan."""

        def preparing(self, *_):
            """Nothing."""

        def planned(self, plan):
            """Note them."""
            told.append(" ".join(plan.notes))

        def happened(self, event):
            """Nothing."""

    study = run_grid(tiny.grid(**BOTH), "runs", jobs=None, observe=Listener())
    assert {r.config["train"]["precision"] for r in study.results} == {"bf16"}
    assert {r.environment["threads"] for r in study.results} == {2}
    machine({key: 1.0 + (key == ("fp32", 1)) for key in RATES})
    longer = BOTH | {"seeds": [0, 1]}
    study = run_grid(tiny.grid(**longer), "runs", observe=Listener())
    assert {r.config["train"]["precision"] for r in study.results} == {"bf16"}
    assert {r.environment["threads"] for r in study.results} == {2}
    assert len(study.results) == 8
    assert told[0].startswith("precision: auto is bf16, resources.cpus: auto is 2: images/s of ")
    assert told[1] == told[0]
    there = json.loads((tiny.folder / "runs" / "chosen.json").read_text())
    assert Choice(**there) == kept(tiny.folder / "runs")


def test_what_was_kept_holds_while_the_rest_is_measured(tiny, machine, tmp_path):
    """The precision of a study stands; later its layout is left open too."""
    machine(RATES)
    first = Choice("fp32")
    later = choose(first.applied(tiny.grid(**BOTH)), None, print)
    both = first.filled(later)
    assert (both.precision, both.cpus) == ("fp32", 1)
    assert both.settles(tiny.grid(**BOTH))
    assert not first.settles(tiny.grid(**BOTH))
    (tmp_path / "chosen.json").write_text("{")
    assert kept(tmp_path) == kept(tmp_path / "nowhere") == Choice()


def test_where_nothing_can_be_timed_the_usual_is_taken_and_said(tiny, machine):
    """A function of one's own; cells that run elsewhere; a process that died."""
    machine(RATES)
    own = tiny.grid_of(
        {
            "name": "own",
            "train": {"function": "tiny_functions:train", "args": {"width": 2}},
            "resources": {"cpus": "auto"},
            "matrix": {"width": [1, 2, 3, 4, 5]},
        }
    )
    chosen = choose(own, None, print)
    assert (chosen.precision, chosen.cpus) == (None, 1)
    (told,) = chosen.told(own)
    assert told.startswith("resources.cpus: auto is 1: the usual, 4 processes of 1 thread; ")
    assert told.endswith("a training function of one's own cannot be timed")
    grid = tiny.grid(**BOTH)
    away = choose(grid, None, print, untimed="ray")
    assert (away.precision, away.cpus) == ("fp32", 1)
    assert "nothing is timed for the engine 'ray'" in away.told(grid)[0]
    study = run_grid(grid, "runs", engine=InProcess())
    assert {r.config["train"]["precision"] for r in study.results} == {"fp32"}


def test_layouts_share_all_cores_and_end_at_one_process(tiny, monkeypatch):
    """Powers of two, and all cores; where there are GPUs one, two and four cells on each."""
    monkeypatch.setattr(layout, "devices", lambda: ())
    monkeypatch.setattr(layout, "cores", lambda: 12)
    grid = tiny.grid(resources={"cpus": "auto"}, seeds=list(range(10)))
    assert layouts(grid, None) == (
        Layout(12, 1), Layout(8, 1), Layout(4, 3), Layout(2, 6), Layout(1, 12),
    )  # fmt: skip
    assert layouts(grid, 3) == (usual(grid, 3),) == (Layout(3, 4),)
    monkeypatch.setattr(layout, "devices", lambda: ("0", "1"))
    assert [each.jobs for each in layouts(grid, None)] == [8, 4, 2]
    few = dataclasses.replace(grid, _cells=grid.cells()[:1])
    assert layouts(few, None) == (Layout(1, 12),)


def test_auto_is_no_value_to_compare(tiny):
    """An axis compares fp32 with bf16, not with whichever of them is faster here."""
    with pytest.raises(ConfigError, match=r"tiny.yaml:\d+: axis 'precision': auto is no value"):
        tiny.grid(matrix={"precision": ["fp32", "auto"]})


@pytest.mark.slow
def test_each_way_is_timed_in_processes_that_run_together(tiny):
    """Two processes and one, both precisions; where one dies nothing is known."""
    ways = [Way(p, Layout(n, 1)) for p in ("fp32", "bf16") for n in (2, 1)]
    turns = []
    cell = tiny.grid().cells()[0]
    rates = timed_ways(cell, ways, Resources(), lambda *told: turns.append(told))
    assert set(rates) == set(ways)
    assert all(rate > 0 for rate in rates.values())
    assert turns == [(i, 12) for i in range(12)]
    dying = tiny.grid(matrix={"trouble": ["kill"]}).cells()[0]
    assert timed_ways(dying, ways, Resources(), print) == {}
    raising = tiny.grid(matrix={"trouble": ["raise"]}).cells()[0]
    assert timed_ways(raising, ways, Resources(), print) == {}
