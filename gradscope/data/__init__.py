"""Images with class labels: COCO folders, the drawn demo set, class folders, the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscope.lazy import lazily

if TYPE_CHECKING:
    from gradscope.data.cache import default_cache_dir as default_cache_dir
    from gradscope.data.config import DataConfig as DataConfig
    from gradscope.data.dataset import ImageDataset as ImageDataset
    from gradscope.data.dataset import Splits as Splits
    from gradscope.data.loading import load as load

_HOME = {
    "DataConfig": ".config",
    "ImageDataset": ".dataset",
    "Splits": ".dataset",
    "default_cache_dir": ".cache",
    "load": ".loading",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one list of names is enough

__getattr__ = lazily(__name__, _HOME)  # a grid is read without torch
