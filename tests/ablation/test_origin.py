"""What a cell was trained with: changed code and data train again, nothing else does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys

from gradscope.ablation import run_grid
from gradscope.ablation.origin import changes, origin_of
from gradscope.ablation.plan import make_plan
from gradscope.ablation.store import Store
from gradscope.engines.task import InProcess
from gradscope.study.results import Origin


def test_what_changed_is_named():
    """Files that are new, gone or different, the trainer, the data; cells by what changed."""
    old = Origin({"a.py": "1", "b.py": "1"}, 1, "d")
    new = Origin({"b.py": "2", "c.py": "1"}, 2, "e")
    assert old.changed(new) == ("a.py", "b.py", "c.py", "gradscope's trainer", "the data")
    assert old.changed(old) == ()
    known = [("x", old, new), ("y", None, new), ("z", old, old)]
    assert changes(known) == {old.changed(new): ["x"]}


def test_files_that_arguments_name_count(tiny):
    """A text that a model or function is given by its path."""
    (tiny.folder / "text.txt").write_text("one")
    args = {"width": 2, "texts": ["text.txt", "absent.txt"]}
    config = tiny.grid(matrix={"lr": [1e-2]}).cells()[0].config
    config = config.model_copy(update={"model": config.model.model_copy(update={"args": args})})
    before = origin_of(config)
    assert set(before.files) == {"tiny_nets.py", "text.txt"}
    (tiny.folder / "text.txt").write_text("two")
    assert before.changed(origin_of(config)) == ("text.txt",)


class Notes:
    """Keeps the plan, and which cells are begun."""

    def __init__(self):
        self.plan, self.begun = None, []

    def preparing(self, *_):
        """Nothing."""

    def planned(self, plan):
        """Keep it."""
        self.plan = plan

    def happened(self, event):
        """Keep the start."""
        if event.kind == "started":
            self.begun.append(event.task)


def run(grid, **settings):
    """Run in this process, with the module as it lies on disk; study and notes."""
    sys.modules.pop("tiny_nets", None)
    importlib.invalidate_caches()
    notes = Notes()
    return run_grid(grid, "runs", engine=InProcess(), observe=notes, **settings), notes


def edit(tiny, old, new):
    """Change the code of the network."""
    path = tiny.folder / "tiny_nets.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    shutil.rmtree(tiny.folder / "__pycache__", ignore_errors=True)  # of the same second and size


def test_changed_code_is_trained_again_unless_trusted(tiny):
    """ReLU to Tanh gives new losses, one line with the file; --trust keeps the old ones."""
    first, _ = run(tiny.grid())
    assert run(tiny.grid())[1].begun == []
    edit(tiny, "nn.ReLU()", "nn.Tanh()")
    trusted, notes = run(tiny.grid(), trust=True)
    assert notes.begun == []
    assert notes.plan.notes == (
        "tiny_nets.py changed since 4 cells were trained: kept, as --trust says",
    )
    losses = [r.history.step_loss for r in first.results]
    assert [r.history.step_loss for r in trusted.results] == losses
    again, notes = run(tiny.grid())
    assert len(notes.begun) == 4
    assert notes.plan.notes == (
        "tiny_nets.py changed since 4 cells were trained: trained again; --trust keeps them",
    )
    assert all(a.history.step_loss != b for a, b in zip(again.results, losses, strict=True))
    assert run(tiny.grid())[1].begun == []


def test_changed_data_are_trained_on_again(tiny):
    """Other images from the same factory, with the same arguments."""
    run(tiny.grid(matrix={"width": [2]}))
    edit(tiny, "manual_seed(1)", "manual_seed(2)")
    plan = run(tiny.grid(matrix={"width": [2]}))[1].plan
    assert plan.notes[0].startswith("tiny_nets.py and the data changed since 1 cell was trained")


def test_results_without_a_digest_are_kept(tiny):
    """As older versions stored them: not trained again, and one line says so."""
    study, _ = run(tiny.grid())
    for result in study.results[:3]:
        path = tiny.folder / "runs" / result.id / "result.json"
        stored = json.loads(path.read_text())
        for key in ("origin", "notes", "is_traced"):
            del stored[key]
        del stored["history"]["logged"]
        path.write_text(json.dumps(stored))
    edit(tiny, "nn.ReLU()", "nn.Tanh()")
    _, notes = run(tiny.grid())
    assert notes.begun == [study.results[3].id]
    assert sorted(notes.plan.notes) == [
        "3 cells were stored by an older gradscope, without a digest of the code: kept",
        "tiny_nets.py changed since 1 cell was trained: trained again; --trust keeps them",
    ]


def test_another_trainer_trains_again(tiny):
    """A version of the built-in loop that gives other numbers makes its results stale."""
    grid = tiny.grid(matrix={"width": [2]})
    study, _ = run(grid)
    store = Store(tiny.folder / "runs")
    result = study.results[0]
    older = dataclasses.replace(result.origin, trainer=result.origin.trainer - 1)
    store.save(dataclasses.replace(result, origin=older), result.trace())
    plan = make_plan(grid, store)
    assert [cell.id for cell in plan.todo] == [result.id]
    assert plan.notes[0].startswith("gradscope's trainer changed since 1 cell was trained")
