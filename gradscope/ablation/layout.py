"""Layout: how many cells a machine trains at a time, and with how many threads each."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.ablation.grid import Grid
from gradscope.ablation.settings import AUTO
from gradscope.engines.placement import Resources, cores, devices, slots

_TO_A_GPU = (1, 2, 4)
"""Cells that are tried on one GPU at a time."""


@dataclass(frozen=True)
class Layout:
    """So many processes at a time, so many threads in each."""

    jobs: int
    threads: int

    def __str__(self) -> str:
        processes = "1 process" if self.jobs == 1 else f"{self.jobs} processes"
        return f"{processes} of {self.threads} thread{'s' * (self.threads != 1)}"


def needs_of(grid: Grid) -> Resources:
    """What a cell needs; what is still to be measured counts as not said."""
    asked = grid.resources.model_dump()
    return Resources(**{name: None if value == AUTO else value for name, value in asked.items()})


def usual_jobs(grid: Grid) -> int:
    """As many processes as a machine has places for cells; one per GPU, or else per core.

    The same however many cells are left, since it sets the threads.
    """
    needs = needs_of(grid)
    jobs = max(1, min(cores(), len(grid.cells())))
    gpus = devices()
    if gpus and needs.gpus is None:
        jobs = min(jobs, len(gpus))
    return len(slots(needs, jobs, gpus))


def usual(grid: Grid, jobs: int | None) -> Layout:
    """The layout of a grid that leaves nothing to be measured."""
    needs = needs_of(grid)
    jobs = len(slots(needs, jobs or usual_jobs(grid), devices()))
    return Layout(jobs, needs.cpus or max(1, cores() // jobs))


def layouts(grid: Grid, jobs: int | None) -> tuple[Layout, ...]:
    """Those that the grid leaves open: one process with all cores, or several that share them.

    Args:
        grid: whose ``resources.cpus`` may be ``auto``.
        jobs: processes at a time, where that is said; leaves one layout.
    """
    if grid.resources.cpus != AUTO or jobs is not None:
        return (usual(grid, jobs),)
    needs, gpus = needs_of(grid), devices()
    most = len(slots(needs, max(1, min(cores(), len(grid.cells()))), gpus))
    if gpus and needs.gpus is None:
        counts = {len(gpus) * each for each in _TO_A_GPU}
    else:
        counts = {2**i for i in range(most.bit_length())} | {most}
    fitting = {n for n in counts if n <= most} or {most}
    return tuple(Layout(n, max(1, cores() // n)) for n in sorted(fitting, reverse=True))
