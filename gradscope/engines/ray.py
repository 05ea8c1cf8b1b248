"""Ray: tasks on a cluster, or in Ray's processes on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gradscope.engines.installed import check_engine
from gradscope.engines.placement import Resources
from gradscope.engines.task import THREADS, Event, Observe, Task, Work, attempt, final, tell
from gradscope.errors import ConfigError, one_line

_LOOK_EVERY_S = 0.5
"""How often progress is looked for while nothing ends."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, or Ray on this machine when none is joined.

    What the work returns comes back through Ray's object store, so that no folder need be shared.
    A task whose process or node died is tried once more, and so is one that shared a GPU and had no
    room there; it gets a whole one then.
    """

    jobs: int | None = None
    """Tasks at a time; None: as many as the cluster has room for."""
    needs: Resources = field(default_factory=Resources)
    """Of each task: one processor and no GPU where nothing else is said."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``ray.init``."""

    @property
    def threads(self) -> int:
        """Processors of each task."""
        return self.needs.cpus or 1

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`.

        Raises:
            ConfigError: Ray is not installed, or no node of the cluster has room for a task.
        """
        check_engine("ray")
        import ray

        if not tasks:
            return
        if not ray.is_initialized():
            ray.init(**{"log_to_driver": False, **self.options})
        limit = min(self.jobs or len(tasks), self._room(ray.nodes()))
        told = _queue(ray)
        remote = ray.remote(_remotely)
        waiting = list(reversed(tasks))
        running: dict[Any, Task] = {}
        tried: set[str] = set()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    task = waiting.pop()
                    demands = self._demands(alone=task.id in tried)
                    reference = remote.options(**demands).remote(task, work, self.threads, told)
                    running[reference] = task
                    observe(Event(task.id, "started"))
                done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY_S)
                _pass_on(told, {task.id for task in running.values()}, observe)
                for reference in done:
                    task = running.pop(reference)
                    event, may_fare_better = _fetched(ray, reference, task.id)
                    if may_fare_better and task.id not in tried:
                        tried.add(task.id)
                        waiting.append(task)
                    else:
                        observe(final(event))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            told.shutdown(force=True)

    def _demands(self, *, alone: bool) -> dict[str, Any]:
        gpus = self.needs.gpus or 0
        variables = dict.fromkeys(THREADS, str(self.threads))
        found: dict[str, Any] = {
            "num_cpus": self.threads,
            "num_gpus": math.ceil(gpus) if alone else gpus,
            "max_retries": 0,
            "runtime_env": {"env_vars": variables},
        }
        if self.needs.memory_gb is not None:
            found["memory"] = int(self.needs.memory_gb * 1e9)
        return found

    def _room(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """How many tasks the nodes that live have room for, all together."""
        wanted = {"CPU": float(self.threads)}
        if self.needs.gpus:
            wanted["GPU"] = self.needs.gpus
        if self.needs.memory_gb is not None:
            wanted["memory"] = self.needs.memory_gb * 1e9
        room = 0
        for node in nodes:
            if node["Alive"]:
                there = node["Resources"]
                room += min(int(there.get(k, 0) / v + 1e-9) for k, v in wanted.items())
        if not room:
            raise ConfigError(
                f"engine 'ray': no node has room for {_listed(wanted)}; ask for fewer resources"
            )
        return room


def _listed(wanted: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())


def _remotely(task: Task, work: Work, threads: int, told: Any) -> Event:
    import torch

    torch.set_num_threads(threads)
    return attempt(task, work, partial(tell, told.actor.put_nowait.remote, task.id))


def _queue(ray: Any) -> Any:
    """For progress; on the driver's own node, since it must not die with another."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _pass_on(told: Any, running: set[str], observe: Observe) -> None:
    """Progress that was told since; of tasks that have ended meanwhile, none."""
    for event in told.get_nowait_batch(told.qsize()):
        if event.task in running:
            observe(event)


def _fetched(ray: Any, reference: Any, task: str) -> tuple[Event, bool]:
    """What became of a task, and whether another try may fare better."""
    try:
        event: Event = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # not the work: what it returned cannot travel
        return Event(task, "lost", one_line(error, 300)), False
    except ray.exceptions.RayError as error:
        return Event(task, "lost", f"its process or its node died: {one_line(error, 300)}"), True
    return event, event.kind == "crowded"
