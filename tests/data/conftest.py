"""A tiny COCO folder that tests write and then bend, caches, and a picture of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_coco import TinyCoco


@pytest.fixture
def tiny(tmp_path) -> TinyCoco:
    """An empty folder to write COCO into."""
    return TinyCoco(tmp_path / "coco")


@pytest.fixture
def small(tiny) -> TinyCoco:
    """Two classes, 6 training images and 4 validation images."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one * 3, "val": one * 2})
    return tiny


@pytest.fixture
def cache(tmp_path) -> Path:
    """An empty cache."""
    return tmp_path / "cache"


@pytest.fixture
def noise():
    """A smooth random RGB picture, which JPEG keeps well: shape (48, 64, 3), uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def coco_cache(tmp_path_factory) -> Path:
    """A cache of the real images that tests share."""
    return tmp_path_factory.mktemp("coco-cache")
