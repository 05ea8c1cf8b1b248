"""How long cells take: from cells that were run, or from a few timed steps."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from gradscope.ablation.grid import Cell
from gradscope.ablation.settings import CellConfig
from gradscope.ablation.training import train_cell
from gradscope.data import ImageDataset, Splits, load
from gradscope.errors import GradscopeError, no_space
from gradscope.study.results import CellResult

_EVALUATION = 1 / 3
"""Cost of an image that is only judged, in images trained: forward, without backward."""

_TIMING_S = 20.0
"""Seconds that all timings of `timed` together take, about."""


def from_results(cells: Sequence[Cell], results: Iterable[CellResult]) -> dict[str, float]:
    """Seconds of each cell, as far as cells of the same cost have been trained to their end.

    Args:
        cells: whose time is asked.
        results: of cells that were run.

    Returns:
        Cell id -> seconds; cells that nothing is known of are absent.
    """
    configs = {cell.id: cell.config for cell in cells}
    per_epoch: dict[str, list[float]] = {}
    for result in results:
        config = configs.get(result.id)
        if config is not None and result.status == "done":
            seconds = result.duration_s / _epochs(config)
            per_epoch.setdefault(likeness(config), []).append(seconds)
    return {
        cell.id: statistics.mean(per_epoch[like]) * _epochs(cell.config)
        for cell in cells
        if (like := likeness(cell.config)) in per_epoch
    }


def _epochs(config: CellConfig) -> int:
    """A function of one's own has no epochs that we know of: its cells count whole."""
    return 1 if config.train.function else config.train.epochs


_PRICED = ("batch_size", "precision", "channels_last", "optimizer", "function", "args")


def likeness(config: CellConfig) -> str:
    """Equal for cells that cost the same per epoch: the values of weights and rates do not tell."""
    told = config.model_dump(mode="json")
    told.get("model", {}).pop("init", None)
    told["train"] = {name: told["train"].get(name) for name in _PRICED}
    return json.dumps({**told, "seed": 0}, sort_keys=True)


def timed(
    cells: Sequence[Cell], threads: int, tell: Callable[[int, int], None]
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of each cell, from a few steps of one cell of each cost.

    Args:
        cells: whose time is asked; those that a function of one's own trains cannot be timed.
        threads: with which each will be trained.
        tell: told how many costs are known, of how many.

    Returns:
        Cell id -> seconds; cell id -> why it cannot be trained.
    """
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        if not cell.config.train.function:
            kinds.setdefault(likeness(cell.config), []).append(cell)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    failures: dict[str, str] = {}
    try:
        for i, members in enumerate(kinds.values()):
            tell(i, len(kinds))
            for cell in members:  # until one of them can be trained: it stands for the rest
                failed = _attempt(cell, members, _TIMING_S / len(kinds), found)
                if not failed:
                    break
                failures[cell.id] = failed
    finally:
        torch.set_num_threads(before)
    tell(len(kinds), len(kinds))
    return {name: s for name, s in found.items() if name not in failures}, failures


def _attempt(cell: Cell, alike: Sequence[Cell], budget_s: float, found: dict[str, float]) -> str:
    """Time one cell for all that cost the same; why that fails, on one line."""
    assert cell.config.data is not None
    try:
        per_epoch = _epoch_s(cell, load(cell.config.data), budget_s)
    except GradscopeError as error:
        return " ".join(str(error).split())
    except Exception as error:
        full = no_space(error)
        if full is not None:
            raise full from error
        return " ".join(f"{type(error).__name__}: {error}".split())
    found |= {other.id: per_epoch * other.config.train.epochs for other in alike}
    return ""


def _epoch_s(cell: Cell, splits: Splits, budget_s: float) -> float:
    """Seconds of one epoch, from two steps, or more while the budget lasts."""
    steps = 2
    while True:
        started = time.perf_counter()
        images = min(steps * cell.config.train.batch_size, len(splits.train))
        rate = images_per_s(cell, splits, images)
        spent = time.perf_counter() - started
        budget_s -= spent
        if images == len(splits.train) or budget_s < 3 * spent:
            return (len(splits.train) + _EVALUATION * len(splits.val)) / rate
        steps *= 2  # the first steps of a process are its slowest: they only set the scale


def images_per_s(cell: Cell, splits: Splits, images: int) -> float:
    """How fast a cell trains.

    Args:
        cell: of the built-in loop.
        splits: its images.
        images: so many are trained, or all where there are fewer.
    """
    few = dataclasses.replace(
        splits,
        train=_first(splits.train, images),
        val=_first(splits.val, 0),
    )
    once = cell.config.model_copy(
        update={"train": cell.config.train.model_copy(update={"epochs": 1})}
    )
    return train_cell(dataclasses.replace(cell, config=once), few)[0].images_per_s


def _first(dataset: ImageDataset, n: int) -> ImageDataset:
    return ImageDataset(dataset.images[:n], dataset.labels[:n])


def longest_first(cells: Sequence[Cell], seconds: Mapping[str, float]) -> list[Cell]:
    """The order in which several processes end soonest; the grid's where times are unknown."""
    known = [s for s in seconds.values() if math.isfinite(s)]
    usual = statistics.mean(known) if known else 0.0
    return sorted(cells, key=lambda cell: -seconds.get(cell.id, usual))


def makespan_s(seconds: Sequence[float], jobs: int) -> float:
    """Seconds until all are done, begun in this order by so many processes."""
    ends = [0.0] * max(1, jobs)
    for duration in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + duration)
    return max(ends)
