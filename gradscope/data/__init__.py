"""Images with class labels: COCO folders, the drawn demo set, class folders, the user's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.data.cache import default_cache_dir as default_cache_dir
    from gradscope.data.config import DataConfig as DataConfig
    from gradscope.data.dataset import ImageDataset as ImageDataset
    from gradscope.data.dataset import Splits as Splits
    from gradscope.data.loading import load as load

_HOME = {
    "DataConfig": "config",
    "ImageDataset": "dataset",
    "Splits": "dataset",
    "default_cache_dir": "cache",
    "load": "loading",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one list of names is enough


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a grid is read without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'gradscope.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"gradscope.data.{_HOME[name]}"), name)
