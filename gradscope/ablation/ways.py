"""Ways: how fast a cell trains with each precision in each layout, by a few steps of each."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradscope.ablation.estimate import images_per_s
from gradscope.ablation.grid import Cell
from gradscope.ablation.layout import Layout
from gradscope.data import load
from gradscope.engines.local import Local
from gradscope.engines.placement import Resources
from gradscope.engines.task import Event

Precision = Literal["fp32", "bf16"]

_TURNS = 2
"""How often each way is timed, after a first time that warms up."""

_TURN_S = 0.7
"""Seconds of a timed turn, where four steps take no longer."""

_ENOUGH_S = 30.0
"""After so long no further turns follow once each way was timed."""

_LOOK_EVERY_S = 0.02
_PATIENCE_S = 300.0
"""After so long without the others a process gives up: one of them has died."""


@dataclass(frozen=True)
class Way:
    """One way to train the cells of a grid."""

    precision: Precision
    layout: Layout

    def __str__(self) -> str:
        return f"{self.precision} with {self.layout}"


def timed_ways(
    cell: Cell,
    ways: Sequence[Way],
    needs: Resources,
    tell: Callable[[int, int], None],
    cache_dir: Path | None = None,
) -> dict[Way, float]:
    """Training images per second of all processes together, each way in turn and all turns twice.

    The processes of the largest layout are started once; those that a way does not need wait.

    Args:
        cell: of the built-in loop.
        ways: to compare.
        needs: of a cell, without processors.
        tell: told how many turns are done, of how many.
        cache_dir: of the images.

    Returns:
        Way -> images per second; without those that failed, and empty where a process died.
    """
    most = max(way.layout.jobs for way in ways)
    places = [_Place(str(i), i, cell) for i in range(most)]
    found: list[Mapping[int, float]] = []

    def note(event: Event) -> None:
        if event.kind == "progress":
            tell(*event.value)
        elif event.kind == "finished":
            found.append(event.value)
        elif event.kind != "started":
            raise _DiedError

    with tempfile.TemporaryDirectory(prefix="gradscope-") as folder:
        work = _Turns(Path(folder), tuple(ways), most, cache_dir)
        try:
            Local(most, needs).run(places, work, note)
        except _DiedError:  # the others would wait for it
            return {}
    rates = {way: [rates[i] for rates in found if i in rates] for i, way in enumerate(ways)}
    return {way: sum(each) for way, each in rates.items() if len(each) == way.layout.jobs}


class _DiedError(Exception):
    """One of the processes ended before its time."""


@dataclass(frozen=True)
class _Place:
    """One of the processes, as a task of an engine."""

    id: str
    number: int
    cell: Cell


@dataclass(frozen=True)
class _Turns:
    """What each process does: all ways in turn, at the same time as the others."""

    folder: Path
    ways: tuple[Way, ...]
    processes: int
    cache_dir: Path | None

    def __call__(self, place: _Place, tell: Callable[[tuple[int, int]], None]) -> dict[int, float]:
        import torch

        data = place.cell.config.data
        assert data is not None
        splits = load(data, cache_dir=self.cache_dir)
        batch = place.cell.config.train.batch_size
        images = dict.fromkeys(range(len(self.ways)), 2 * batch)
        rates: dict[int, list[float]] = {i: [] for i in images}
        total = (1 + _TURNS) * len(self.ways)
        started, enough = time.monotonic(), self.folder / "enough"
        for turn in range(total):
            i = turn % len(self.ways)
            is_each_timed = turn == 2 * len(self.ways)
            if place.number == 0:
                tell((turn, total))
                if is_each_timed and time.monotonic() - started > _ENOUGH_S:
                    enough.touch()
            self._meet(turn, place.number)
            if is_each_timed and enough.exists():
                break
            way = self.ways[i]
            if place.number >= way.layout.jobs or i not in images:
                continue
            torch.set_num_threads(way.layout.threads)
            train = place.cell.config.train.model_copy(update={"precision": way.precision})
            config = place.cell.config.model_copy(update={"train": train})
            try:
                rate = images_per_s(Cell(place.cell.id, {}, config), splits, images[i])
            except Exception:  # noqa: BLE001 - no memory for it, or no such precision here
                del images[i]
                continue
            if turn >= len(self.ways):
                rates[i].append(rate)
            images[i] = max(4 * batch, int(_TURN_S * rate))
        return {i: statistics.median(rates[i]) for i in images if rates[i]}

    def _meet(self, turn: int, number: int) -> None:
        """Wait for the other processes, so that all begin a turn together."""
        (self.folder / f"{turn}-{number}").touch()
        deadline = time.monotonic() + _PATIENCE_S
        while len(list(self.folder.glob(f"{turn}-*"))) < self.processes:
            if time.monotonic() > deadline:
                raise TimeoutError("another process has died")
            time.sleep(_LOOK_EVERY_S)
