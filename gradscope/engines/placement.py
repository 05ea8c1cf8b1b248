"""What a task needs of a machine, and where it is put: processors, memory, GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.errors import ConfigError

_WHOLE = 1e-9
"""Room for rounding: three thirds of a GPU are one."""


@dataclass(frozen=True)
class Resources:
    """What one task needs."""

    cpus: int | None = None
    """Processors, and so threads; None: an equal share of all."""
    gpus: float | None = None
    """GPUs; a fraction shares one with others. None: one each where there are any, or an equal
    share of all where more tasks run than there are GPUs."""
    memory_gb: float | None = None
    """Memory of the machine, in 10^9 bytes; None: no matter."""
    time_min: float | None = None
    """Minutes after which a scheduler may end it; the engines of one machine do not ask."""


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory_gb() -> float:
    """Memory of this machine; infinite where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return float("inf")


def devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1"))
    import torch

    return tuple(str(i) for i in range(torch.cuda.device_count()))


def slots(
    needs: Resources,
    jobs: int,
    gpus: Sequence[str] = (),
    *,
    n_cores: int | None = None,
    memory: float | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Places for tasks that run at a time: for each the GPUs that it sees.

    Args:
        needs: of one task.
        jobs: at most so many places.
        gpus: names of those there are.
        n_cores: processors there are; None: of this machine.
        memory: in 10^9 bytes; None: of this machine.

    Returns:
        At least one place, and never more than fit; all are empty where no GPU is needed.

    Raises:
        ConfigError: not even one task fits.
    """
    n_cores = cores() if n_cores is None else n_cores
    memory = memory_gb() if memory is None else memory
    if needs.cpus is not None:
        jobs = min(jobs, _fit(n_cores, needs.cpus, "cpus"))
    if needs.memory_gb is not None:
        jobs = min(jobs, _fit(memory, needs.memory_gb, "memory_gb"))
    share = needs.gpus
    if share is None:
        share = min(1.0, len(gpus) / jobs)
    if share <= 0:
        return ((),) * jobs
    if share < 1:
        each = int(1 / share + _WHOLE)
        # One on each GPU before any shares.
        places: list[tuple[str, ...]] = [(gpu,) for _ in range(each) for gpu in gpus]
    else:
        n = round(share)
        if abs(share - n) > _WHOLE:
            raise ConfigError(f"resources.gpus: {share:g}; give a whole number, or less than one")
        places = [tuple(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)]
    if not places:
        raise ConfigError(f"resources.gpus: {share:g}, but there are {len(gpus)}; ask for fewer")
    return tuple(places[:jobs])


def _fit(there: float, wanted: float, name: str) -> int:
    if wanted > there:
        raise ConfigError(f"resources.{name}: {wanted:g}, but there are {there:.3g}; ask for fewer")
    return int(there / wanted + _WHOLE)


def described(needs: Resources, places: Sequence[Sequence[str]], gpus: Sequence[str]) -> str:
    """How tasks are placed where nobody said it, on one line; empty where there is no GPU."""
    if needs.gpus is not None or not gpus:
        return ""
    some = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    shared = -(-len(places) // len(gpus))
    each = "one GPU each" if shared == 1 else f"{shared} to a GPU"
    return f"{some}, {len(places)} at a time, {each}; set resources.gpus for another share"
