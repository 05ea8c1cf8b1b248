"""Where tasks run: in this process, in processes of this machine, on a cluster."""

from gradscope.engines.local import Local
from gradscope.engines.placement import Resources, cores
from gradscope.engines.ray import Ray
from gradscope.engines.slurm import Slurm
from gradscope.engines.task import Engine, Event, InProcess, Observe, Task, Work

__all__ = [
    "Engine",
    "Event",
    "InProcess",
    "Local",
    "Observe",
    "Ray",
    "Resources",
    "Slurm",
    "Task",
    "Work",
    "cores",
]
