"""SLURM: tasks as a job array, through submitit; the command may be closed and taken up again."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.engines.installed import check_engine
from gradscope.engines.placement import Resources
from gradscope.engines.task import THREADS, Event, Observe, Task, Work, attempt, final
from gradscope.errors import ConfigError, one_line

_LOOK_EVERY_S = 2.0
"""How often the state of the jobs is asked for."""

_USUAL_MIN = 24 * 60
"""Minutes that a job gets where nobody says how long a task takes."""


@dataclass(frozen=True)
class Slurm:
    """Jobs of a SLURM cluster, one per task, whose folder all nodes share.

    Jobs outlive the command: closed, it leaves them in the queue, and the next run takes up those
    that are still there. One that is preempted or out of time is queued again.
    """

    folder: Path
    """Shared by all nodes; for the pickled tasks and the output of the jobs."""
    jobs: int | None = None
    """Jobs at a time, at most."""
    needs: Resources = field(default_factory=Resources)
    """Of each task: time, memory and GPUs are asked of SLURM; a part of a GPU counts as one."""
    cluster: str = "slurm"
    """``slurm``, or another of submitit's executors."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further parameters of submitit: ``{"slurm_partition": "gpu"}``."""

    @property
    def threads(self) -> int:
        """Processors of each task."""
        return self.needs.cpus or 1

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`.

        Raises:
            ConfigError: submitit is not installed, or SLURM takes no such job.
        """
        check_engine("slurm")
        import submitit

        known = self._known(submitit)
        running = {task.id: known[task.id] for task in tasks if task.id in known}
        new = [task for task in tasks if task.id not in running]
        if new:
            running |= self._submitted(submitit, new, work)
        self._note(running)
        begun: set[str] = set()
        while running:
            states = self._states(running)
            for task, job in list(running.items()):
                state = states.get(task, "ENDED")
                ended = state == "ENDED" or job.paths.result_pickle.exists()
                if task not in begun and (ended or state == "RUNNING"):
                    begun.add(task)
                    observe(Event(task, "started"))
                if ended:
                    del running[task]
                    self._note(running)
                    observe(final(_outcome(task, job)))
            if running:
                time.sleep(_LOOK_EVERY_S)

    def _states(self, jobs: Mapping[str, Any]) -> dict[str, str]:
        """How the jobs stand that have not ended.

        By squeue, since submitit asks the accounting, which not every cluster keeps.
        """
        if self.cluster != "slurm":
            return {task: job.state for task, job in jobs.items() if not job.done()}
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T"]
        if shutil.which(command[0]) is None:
            return {}
        told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        if told.returncode:  # the controller is busy or restarts: nothing is known to have ended
            return dict.fromkeys(jobs, "UNKNOWN")
        queue = dict(line.strip().split("|", 1) for line in told.stdout.splitlines() if "|" in line)
        return {task: queue[job.job_id] for task, job in jobs.items() if job.job_id in queue}

    def _submitted(self, submitit: Any, tasks: Sequence[Task], work: Work) -> dict[str, Any]:
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**self._demands())
            jobs = executor.map_array(_Job(work, self.threads), tasks)
        except (
            RuntimeError,
            OSError,
            ValueError,
            NameError,
            submitit.core.utils.FailedJobError,
        ) as error:
            reason = one_line(error, 300)
            raise ConfigError(
                f"engine 'slurm': jobs cannot be submitted ({reason}); mend resources, or take the "
                "engine 'local'"
            ) from error
        return {task.id: job for task, job in zip(tasks, jobs, strict=True)}

    def _demands(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": "gradscope",
            "timeout_min": math.ceil(self.needs.time_min or _USUAL_MIN),
            "cpus_per_task": self.threads,
        }
        if self.needs.gpus:
            found["gpus_per_node"] = math.ceil(self.needs.gpus)
        if self.needs.memory_gb is not None:
            found["mem_gb"] = self.needs.memory_gb
        if self.jobs is not None and self.cluster == "slurm":
            found["slurm_array_parallelism"] = self.jobs
        return {**found, **self.options}

    def _note(self, running: Mapping[str, Any]) -> None:
        """Write down which job has which task, for the next run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "jobs.tmp"
        temporary.write_text(json.dumps({task: job.job_id for task, job in running.items()}))
        temporary.replace(self.folder / "jobs.json")

    def _known(self, submitit: Any) -> dict[str, Any]:
        """Jobs of an earlier run that have not ended."""
        try:
            known = json.loads((self.folder / "jobs.json").read_text())
        except (OSError, ValueError):
            return {}
        if self.cluster != "slurm":
            return {}
        jobs = {task: submitit.SlurmJob(self.folder, job) for task, job in known.items()}
        states = self._states(jobs)
        return {task: job for task, job in jobs.items() if task in states}


@dataclass(frozen=True)
class _Job:
    """What a node runs; submitit calls `checkpoint` when the job is to be queued again."""

    work: Work
    threads: int

    def __call__(self, task: Task) -> Event:
        import os

        os.environ.update(dict.fromkeys(THREADS, str(self.threads)))
        import torch

        torch.set_num_threads(self.threads)
        return attempt(task, self.work, lambda _: None)

    def checkpoint(self, task: Task) -> Any:
        """The same again; what the work keeps in its own folder it finds there."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


def _outcome(task: str, job: Any) -> Event:
    if not job.paths.result_pickle.exists():
        told = f"job {job.job_id} ended without a result (killed, cancelled or out of time)"
        return Event(task, "lost", f"{told}; see {job.paths.stderr}")
    try:
        event: Event = job.result()
    except Exception as error:  # noqa: BLE001 - what it returned cannot be read here
        reason = one_line(error, 300)
        return Event(task, "lost", f"job {job.job_id}: {reason}")
    return event
