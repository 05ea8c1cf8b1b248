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

from gradscope.ablation.grid import Cell, CellConfig
from gradscope.ablation.trainer import train_cell
from gradscope.data import ImageDataset, Splits
from gradscope.errors import GradscopeError, ModelError
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
            seconds = result.duration_s / config.train.epochs
            per_epoch.setdefault(likeness(config), []).append(seconds)
    return {
        cell.id: statistics.mean(per_epoch[like]) * cell.config.train.epochs
        for cell in cells
        if (like := likeness(cell.config)) in per_epoch
    }


def likeness(config: CellConfig) -> str:
    """Equal for cells that cost the same per epoch: the values of weights and rates do not tell."""
    told = config.model_dump(
        mode="json",
        include={
            "model": {"name", "args"},
            "data": True,
            "train": {"batch_size", "precision", "channels_last", "optimizer"},
            "record": True,
        },
    )
    return json.dumps(told, sort_keys=True)


def timed(
    cells: Sequence[Cell],
    load: Callable[[Cell], Splits],
    threads: int,
    tell: Callable[[int, int], None],
) -> dict[str, float]:
    """Seconds of each cell, from a few steps of one cell of each cost.

    Args:
        cells: whose time is asked.
        load: the images of a cell.
        threads: with which each will be trained.
        tell: told how many costs are known, of how many.

    Returns:
        Cell id -> seconds, for every cell.

    Raises:
        GradscopeError: a model cannot be built or trained.
    """
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(likeness(cell.config), []).append(cell)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    try:
        for i, members in enumerate(kinds.values()):
            tell(i, len(kinds))
            per_epoch = _epoch_s(members[0], load(members[0]), _TIMING_S / len(kinds))
            found |= {cell.id: per_epoch * cell.config.train.epochs for cell in members}
    finally:
        torch.set_num_threads(before)
    tell(len(kinds), len(kinds))
    return found


def _epoch_s(cell: Cell, splits: Splits, budget_s: float) -> float:
    """Seconds of one epoch, from two steps, or more while the budget lasts."""
    steps = 2
    while True:
        started = time.perf_counter()
        images = min(steps * cell.config.train.batch_size, len(splits.train))
        rate = _images_per_s(cell, splits, images)
        spent = time.perf_counter() - started
        budget_s -= spent
        if images == len(splits.train) or budget_s < 3 * spent:
            return (len(splits.train) + _EVALUATION * len(splits.val)) / rate
        steps *= 2  # the first steps of a process are its slowest: they only set the scale


def _images_per_s(cell: Cell, splits: Splits, images: int) -> float:
    few = dataclasses.replace(
        splits,
        train=_first(splits.train, images),
        val=_first(splits.val, 0),
    )
    once = cell.config.model_copy(
        update={"train": cell.config.train.model_copy(update={"epochs": 1})}
    )
    try:
        result, _ = train_cell(dataclasses.replace(cell, config=once), few)
    except GradscopeError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"cell {cell.id}: cannot be trained ({reason}); mend the model or its settings"
        ) from error
    return result.images_per_s


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
