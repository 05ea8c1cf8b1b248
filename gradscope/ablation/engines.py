"""Engines: where the cells of a grid are run; here, in processes of this machine, or on a cluster.

This module loads nothing heavy, so that a worker can tie its life to its parent's at once.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_context, resource_tracker
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gradscope.errors import ConfigError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Task(Protocol):
    """What an engine runs: anything with an id that can be sent to another process."""

    @property
    def id(self) -> str:
        """Tells it from the others."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task."""

    task: str
    """Its id."""
    kind: Literal["started", "progress", "finished", "lost"]
    """``lost``: the work did not return; the process died, or raised."""
    value: Any = None
    """What the work told, what it returned, or why it was lost, on one line."""
    traceback: str = ""


Work = Callable[[Any, Callable[[Any], None]], Any]
"""Called with a task and a function to tell progress with; what it returns should be small."""
Observe = Callable[[Event], None]


class Engine(Protocol):
    """Runs tasks in their order, several at a time where it can."""

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; each ends with one event, ``finished`` or ``lost``, and a loss stops no other.

        Args:
            tasks: what to do.
            work: does one of them; must be picklable for engines with processes of their own.
            observe: told, in the caller's thread, what happens.
        """
        ...


class InProcess:
    """One task after the other, in this process."""

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`."""
        for task in tasks:
            name = task.id
            observe(Event(name, "started"))
            observe(_attempt(task, work, partial(_tell, observe, name)))


@dataclass(frozen=True)
class Local:
    """Processes on this machine, each with its share of the cores.

    A process runs many tasks, so torch is imported once in each. One that dies, for want of memory
    or by `kill -9`, loses only the task that it was at. None outlives the caller.
    """

    jobs: int
    """Processes at a time."""

    @property
    def threads(self) -> int:
        """Of each process; the same however many tasks are left, since it can change last bits."""
        return max(1, cores() // self.jobs)

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`."""
        waiting = list(reversed(tasks))
        pickled = pickle.dumps(work)
        workers: list[_Worker] = []
        try:
            while waiting or any(worker.task for worker in workers):
                workers = [worker for worker in workers if worker.alive]
                while waiting and len(workers) < min(self.jobs, len(waiting) + _busy(workers)):
                    workers.append(_Worker.start(pickled, self.threads))
                for worker in workers:
                    if waiting and not worker.task:
                        worker.give(waiting.pop(), observe)
                for worker in _ready(workers):
                    worker.listen(observe)
        finally:
            for worker in workers:
                worker.stop()


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
        variables = dict.fromkeys(_THREADS, str(self.threads))
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
                    observe(_fetched(ray, reference, running.pop(reference)))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _tell(observe: Observe, task: str, value: Any) -> None:
    observe(Event(task, "progress", value))


def _attempt(task: Task, work: Work, tell: Callable[[Any], None]) -> Event:
    try:
        return Event(task.id, "finished", work(task, tell))
    except Exception as error:  # noqa: BLE001 - a task must not take the others with it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Event(task.id, "lost", reason, traceback.format_exc())


@dataclass
class _Worker:
    """A process of `Local`, as its parent sees it."""

    process: SpawnProcess
    pipe: Connection
    task: str = ""
    alive: bool = True

    @classmethod
    def start(cls, work: bytes, threads: int) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid(), threads))
        # Set here, not in the child: importing the caller's main module may import torch there.
        with _variables(dict.fromkeys(_THREADS, str(threads))), _interrupts_held():
            process.start()
        theirs.close()
        worker = cls(process, ours)
        worker._send(work)
        return worker

    def give(self, task: Task, observe: Observe) -> None:
        self.task = task.id
        observe(Event(task.id, "started"))
        self._send(pickle.dumps(task))

    def listen(self, observe: Observe) -> None:
        """Pass on one message; a closed pipe means that the process has died."""
        try:
            event = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - from our own child
        except (EOFError, OSError):
            self.stop(patience_s=1.0)  # its pipe may close a little before it ends
            if self.task:
                observe(Event(self.task, "lost", f"its process {self._death()}"))
            self.task = ""
            return
        if event.kind in ("finished", "lost"):
            self.task = ""
        observe(event)

    def stop(self, patience_s: float = 0.0) -> None:
        self.alive = False
        self.process.join(patience_s)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has died; listen() meets the closed pipe next
            self.pipe.send_bytes(message)

    def _death(self) -> str:
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended by itself with exit code {code}; its messages stand above"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
        return f"was killed by {name}{memory}"


def _busy(workers: Sequence[_Worker]) -> int:
    return sum(1 for worker in workers if worker.task)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    found = set(map(id, connection.wait([worker.pipe for worker in workers])))
    return [worker for worker in workers if id(worker.pipe) in found]


def _serve(pipe: Connection, parent: int, threads: int) -> None:
    """Life of a worker process: tasks come through the pipe until it closes."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to act on
    sys.stdout = sys.stderr  # the caller's standard output is for results
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    work = pickle.loads(inbox.get())  # noqa: S301 - from our own parent
    import torch

    torch.set_num_threads(threads)

    def send(event: Event) -> None:
        pipe.send_bytes(pickle.dumps(event))

    while True:
        task = pickle.loads(inbox.get())  # noqa: S301 - from our own parent
        event = _attempt(task, work, partial(_tell, send, task.id))
        send(event)


def _receive(pipe: Connection, inbox: queue.SimpleQueue[bytes]) -> None:
    """Read messages, also while the main thread works, and end the process with its parent."""
    while True:
        try:
            inbox.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def _end_with(parent: int) -> None:
    """Let Linux kill this process the moment its parent dies; elsewhere the pipe tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:  # it died before
        os._exit(1)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a process that Ctrl-C, which reaches all at once, leaves to its parent to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start would lift the block again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remotely(task: Task, work: Work, threads: int) -> Event:
    import torch

    torch.set_num_threads(threads)
    return _attempt(task, work, lambda _: None)


def _fetched(ray: Any, reference: Any, task: str) -> Event:
    try:
        event: Event = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Event(task, "lost", " ".join(f"its process died: {error}".split())[:300])
    return event


def import_ray() -> Any:
    """The module `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine 'ray': Ray is not installed; pip install 'gradscope-torch[ray]', "
            "or take the engine 'local'"
        ) from error
    return ray
