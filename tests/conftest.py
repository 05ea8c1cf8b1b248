"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

COCO = Path(
    os.environ.get(
        "GRADSCOPE_COCO", Path(__file__).resolve().parents[2] / "shared" / "data" / "coco5"
    )
)


@pytest.fixture(autouse=True)
def _nothing_left_attached():
    """No test may leave a global hook behind, nor change the random state of the next."""
    torch.manual_seed(0)
    yield
    from torch.nn.modules import module

    assert not module._global_forward_hooks, "a scope was left open"


@pytest.fixture(scope="session")
def coco() -> Path:
    """The folder of real COCO images, where there is one."""
    if not (COCO / "annotations").is_dir():
        pytest.skip(f"no COCO folder at {COCO.name}; set GRADSCOPE_COCO to one")
    return COCO
