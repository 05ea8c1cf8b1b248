"""What the tests of the engines let them do; fixture `tiny` copies this."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One task: what to do, and with what."""

    id: str
    do: str = "square"
    number: float = 0


class OutOfMemoryError(RuntimeError):
    """Named as that of torch, and in its place: no GPU is needed."""


def work(job, tell):
    """Do it."""
    if job.do == "square":
        tell(job.number)
        return job.number**2
    if job.do == "raise":
        raise ValueError(f"no\nsuch luck: {job.id}")
    if job.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.do == "exit":
        os._exit(int(job.number))
    if job.do == "sleep":
        tell(os.getpid())
        time.sleep(job.number)
    if job.do == "where":
        import torch

        print("spoilt", flush=True)  # noqa: T201 - as models of others do
        return os.getpid(), os.environ["OMP_NUM_THREADS"], torch.get_num_threads()
    if job.do in ("gpu", "crowd", "too large"):
        return on_gpu(job, tell)
    if job.do == "stdout":
        return sys.stdout is sys.stderr
    return None


def on_gpu(job, tell):
    """As if there were one."""
    if job.do == "gpu":
        tell(os.environ.get("CUDA_VISIBLE_DEVICES"))
        time.sleep(job.number)
        return None
    own = Path(f"{job.id}.busy")
    own.touch()
    time.sleep(job.number)
    crowd = len(list(Path().glob("*.busy")))
    own.unlink()
    if crowd > 1 or job.do == "too large":  # has room only where nobody else is at work
        raise OutOfMemoryError("CUDA out of memory")
    return os.getpid()


def main():
    """Run sleeping tasks in two processes until killed, telling their ids."""
    from gradscope.engines.local import Local

    jobs = [Job(f"s{i}", "sleep", 60) for i in range(2)]

    def observe(event):
        if event.kind == "progress":
            print(event.value, flush=True)  # noqa: T201 - the test reads it

    Local(2).run(jobs, work, observe)


if __name__ == "__main__":
    main()
