"""Ray: tasks on a cluster, or in Ray's processes on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscope.engines.task import (
    THREADS,
    Event,
    Observe,
    Task,
    Work,
    attempt,
    final,
)
from gradscope.errors import ConfigError


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, or Ray on this machine when none is joined.

    The folder of the runs must be one that all its machines share. Tells of starts and ends, not of
    the progress in between.
    """

    jobs: int | None = None
    """Tasks at a time; None: as many as the cluster has processors for."""
    threads: int = 1
    """Processors of each task."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``ray.init``."""

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`.

        Raises:
            ConfigError: Ray is not installed.
        """
        ray = import_ray()
        if not ray.is_initialized():
            ray.init(**{"log_to_driver": False, **self.options})
        variables = dict.fromkeys(THREADS, str(self.threads))
        remote = ray.remote(_remotely).options(
            num_cpus=self.threads, max_retries=0, runtime_env={"env_vars": variables}
        )
        limit = self.jobs or max(1, int(ray.cluster_resources().get("CPU", 1)) // self.threads)
        waiting = list(reversed(tasks))
        running: dict[Any, str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    task = waiting.pop()
                    running[remote.remote(task, work, self.threads)] = task.id
                    observe(Event(task.id, "started"))
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    observe(final(_fetched(ray, reference, running.pop(reference))))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _remotely(task: Task, work: Work, threads: int) -> Event:
    import torch

    torch.set_num_threads(threads)
    return attempt(task, work, lambda _: None)


def _fetched(ray: Any, reference: Any, task: str) -> Event:
    try:
        event: Event = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Event(task, "lost", " ".join(f"its process died: {error}".split())[:300])
    return event


def check_installed() -> None:
    """See that Ray can be imported, without importing it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine 'ray': Ray is not installed; pip install 'gradscope-torch[ray]', "
            "or take the engine 'local'"
        )


def import_ray() -> Any:
    """The module `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    check_installed()
    import ray

    return ray
