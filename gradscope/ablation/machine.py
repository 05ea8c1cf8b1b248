"""The machine that a cell is trained on: what it is, and how its arithmetic is set."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # from malloc.h


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory for a while, so that each step finds its tensors' pages mapped.

    Else the kernel takes the pages back at the end of a step and clears them again in the next,
    which costs as much as the arithmetic of a small batch. The memory goes back at the end;
    glibc's thresholds stay. Without glibc nothing happens.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        if libc is not None:
            libc.malloc_trim(ctypes.c_size_t(0))


def environment() -> dict[str, Any]:
    """Versions, processor and threads of this process, JSON types."""
    return {**_facts(), "threads": torch.get_num_threads()}


@cache
def _facts() -> dict[str, str]:
    """What stays the same while a process lives."""
    return {
        "gradscope": metadata.version("gradscope-torch"),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():  # platform.processor() is empty on Linux
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Count denormal numbers as zero for a while: Adam's decayed moments slow a CPU down else."""
    smallest = torch.finfo(torch.float32).smallest_normal
    before = bool(torch.tensor(smallest) / 2 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
