"""Random generators: seeded for a while, and given back as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's generators for a while, and give all generators back as they were.

    Args:
        seed: for the CPU and, where CUDA is in use, each device; None: go on from where they are.
    """
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    # Asking an unused CUDA for its state would start it up.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]  # torch left it so
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for generator in torch.cuda.default_generators if cuda is not None else ():
                generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
