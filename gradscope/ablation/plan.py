"""Plan: which cells are trained, in which order, and why those that are stored are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradscope.ablation.estimate import from_results, longest_first
from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.origin import changes, origin_of
from gradscope.ablation.store import Store
from gradscope.study.results import ENDED, CellResult, Origin


@dataclass(frozen=True)
class Plan:
    """What a run is going to do."""

    todo: tuple[Cell, ...]
    """In the order in which they are begun."""
    stored: tuple[CellResult, ...]
    """Cells that were run before, and are not run again."""
    retried: tuple[CellResult, ...]
    """Cells that failed before, and are run again."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Cell id -> how long it takes, as far as cells that were run tell."""
    stale: Mapping[str, CellResult] = field(default_factory=dict)
    """Cells that were run before with other code or data, and are run again."""
    notes: tuple[str, ...] = ()
    """Why stored cells are run again, or are kept though little is known of them; a line each."""


def make_plan(
    grid: Grid,
    store: Store,
    *,
    data: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Plan:
    """What is stored, what is to be done, and in which order.

    Args:
        grid: the study.
        store: its folder.
        data: settings of images, as JSON -> digest of the images; absent ones are taken as they
            were.
        trust: keep what was trained with other code or data.
    """
    cells = grid.cells()
    results = {result.id: result for result in map(store.read, cells)}
    kinds = ENDED if grid.stop is not None else tuple(s for s in ENDED if s != "stopped")
    ended = {cell.id: cell for cell in cells if results[cell.id].status in kinds}
    now = _origins(ended, results, data or {})
    changed = changes((name, results[name].origin, now[name]) for name in ended)
    notes = [_changed(what, len(names), trust=trust) for what, names in changed.items()]
    unknown = sum(results[name].origin is None for name in ended)
    if unknown:
        notes.append(
            f"{_cells(unknown)} stored by an older gradscope, without a digest of the code: kept"
        )
    old = set() if trust else {name for names in changed.values() for name in names}
    stored = tuple(results[name] for name in ended if name not in old)
    seconds = from_results(cells, [results[name] for name in ended])
    kept = {result.id for result in stored}
    todo = longest_first([cell for cell in cells if cell.id not in kept], seconds)
    retried = tuple(result for result in results.values() if result.status == "failed")
    stale = {name: results[name] for name in ended if name in old}
    return Plan(tuple(todo), stored, retried, seconds, stale, tuple(notes))


def _origins(
    cells: Mapping[str, Cell], results: Mapping[str, CellResult], data: Mapping[str, str]
) -> dict[str, Origin]:
    """What each cell would be trained with now; asked once for each set of factories and files."""
    known: dict[str, Origin] = {}
    found = {}
    for name, cell in cells.items():
        before = results[name].origin
        images = cell.config.data.model_dump_json() if cell.config.data else ""
        digest = data.get(images, before.data if before else "") if images else ""
        asked = cell.config.model_copy(update={"seed": 0}).model_dump_json() + digest
        if asked not in known:
            known[asked] = origin_of(cell.config, digest)
        found[name] = known[asked]
    return found


def _changed(what: tuple[str, ...], count: int, *, trust: bool) -> str:
    named = " and ".join(what[:3]) + (f" and {len(what) - 3} more" if len(what) > 3 else "")
    then = "kept, as --trust says" if trust else "trained again; --trust keeps them"
    return f"{named} changed since {_cells(count)} trained: {then}"


def _cells(count: int) -> str:
    return "1 cell was" if count == 1 else f"{count} cells were"
