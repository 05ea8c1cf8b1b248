"""Engines: where the cells of a grid are run; here, in processes of this machine, or on a cluster.

This module loads nothing heavy, so that a worker can tie its life to its parent's at once.

The pool is our own. In loky (3.7) one process that dies takes the tasks of all others with it; in
pebble (5.2) it does not, but a task runs on after its parent was killed, and a process gets neither
variables of its own before its first import (threads, CUDA_VISIBLE_DEVICES) nor a way to tell
progress, so that all that stands here would stand around it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_context, resource_tracker
from types import ModuleType
from typing import TYPE_CHECKING

from gradscope.engines.placement import Resources, cores, devices, slots
from gradscope.engines.task import (
    THREADS,
    Event,
    Observe,
    Task,
    Work,
    attempt,
    final,
    tell,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_HELD = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class Local:
    """Processes on this machine, each with its share of the cores.

    A process runs many tasks, so torch is imported once in each. One that dies, for want of memory
    or by `kill -9`, loses only the task that it was at. None outlives the caller.
    """

    jobs: int
    """Processes at a time, at most."""
    needs: Resources = field(default_factory=Resources)
    """Of each task; fewer run at a time where no more fit."""
    gpus: tuple[str, ...] | None = None
    """Names of the GPUs; None: those that this process may use."""

    @property
    def threads(self) -> int:
        """Of each process; the same however many tasks are left, since it can change last bits."""
        return self.needs.cpus or max(1, cores() // self.jobs)

    @property
    def places(self) -> tuple[tuple[str, ...], ...]:
        """For each process the GPUs that it sees.

        Raises:
            ConfigError: not even one task fits.
        """
        return slots(self.needs, self.jobs, devices() if self.gpus is None else self.gpus)

    def run(self, tasks: Sequence[Task], work: Work, observe: Observe) -> None:
        """Run all; see `Engine`. Tasks for which a GPU was too crowded follow one by one."""
        crowded: list[str] = []

        def noted(event: Event) -> None:
            if event.kind == "crowded":
                crowded.append(event.task)
            else:
                observe(event)

        self._run(tasks, work, noted, self.places if tasks else ())
        alone = [task for task in tasks if task.id in crowded]
        for task in alone:  # in a new process: those that shared the GPU keep what they had
            self._run([task], work, lambda event: observe(final(event)), self.places[:1])

    def _run(
        self,
        tasks: Sequence[Task],
        work: Work,
        observe: Observe,
        places: Sequence[tuple[str, ...]],
    ) -> None:
        waiting = list(reversed(tasks))
        pickled = pickle.dumps(work)
        workers: list[_Worker] = []
        try:
            while waiting or any(worker.task for worker in workers):
                workers = [worker for worker in workers if worker.alive]
                while waiting and len(workers) < min(len(places), len(waiting) + _busy(workers)):
                    taken = [worker.place for worker in workers]
                    free = next(i for i in range(len(places)) if i not in taken)
                    workers.append(_Worker.start(pickled, self.threads, free, places[free]))
                for worker in workers:
                    if waiting and not worker.task:
                        worker.give(waiting.pop(), observe)
                for worker in _ready(workers):
                    worker.listen(observe)
        finally:
            for worker in workers:
                worker.stop()


@dataclass
class _Worker:
    """A process of `Local`, as its parent sees it."""

    process: SpawnProcess
    pipe: Connection
    place: int
    """Which of the engine's places it has."""
    task: str = ""
    alive: bool = True

    @classmethod
    def start(cls, work: bytes, threads: int, place: int, gpus: Sequence[str]) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid(), threads))
        # Set here, not in the child: what it imports first may import torch.
        values = dict.fromkeys(THREADS, str(threads))
        if gpus:
            values["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        unguarded = nullcontext() if b"__main__" in work else _main_hidden()
        with _variables(values), _interrupts_held(), unguarded:
            process.start()
        theirs.close()
        worker = cls(process, ours, place)
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
        if event.kind in ("finished", "lost", "crowded", "halted"):
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
    _leave_signals_to_parent()
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
        event = attempt(task, work, partial(tell, send, task.id))
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


def _leave_signals_to_parent() -> None:
    """Ctrl-C and SIGTERM reach a whole group at once; the parent then kills this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "pthread_sigmask"):
        return
    # A handler and not SIG_IGN, which programs started from here would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


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
    """Start a process that leaves Ctrl-C and SIGTERM, from its first moment, to its parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start would lift the block again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # a child inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Start a process that does not run the caller's script again.

    A script without ``if __name__ == "__main__"`` would start its own processes in each of ours.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
