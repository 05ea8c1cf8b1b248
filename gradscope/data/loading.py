"""load(): the images that a configuration names, from the cache or read afresh."""

from __future__ import annotations

from pathlib import Path

from gradscope.data.cache import Cache, default_cache_dir
from gradscope.data.coco import CocoFolder
from gradscope.data.config import DataConfig, check, folder_of
from gradscope.data.dataset import Splits
from gradscope.data.demo import DemoSet
from gradscope.data.folder import ClassFolders
from gradscope.data.own import OwnDataset
from gradscope.data.source import ReportProgress, Source


def load(
    config: DataConfig, progress: ReportProgress | None = None, cache_dir: Path | None = None
) -> Splits:
    """Training and validation images as memory-mapped uint8 arrays.

    The first call reads, resizes and caches the images; later ones, also at once from several
    processes, map the arrays. A change of the annotations, of an image file or of a setting reads
    them again.

    Args:
        config: which images.
        progress: told what is being done, how many are done, of how many; not called on a hit.
        cache_dir: where the arrays are kept; None: `default_cache_dir`.

    Returns:
        Images of shape (images, channels, size, size) with labels, and what was left out.

    Raises:
        DataError: the source is unknown, missing or malformed, a class has no images, or too many
            images are unreadable.
        ModelError: ``package.module:factory`` cannot be imported.
    """
    cache = Cache(default_cache_dir() if cache_dir is None else cache_dir)
    return cache.load(_source(config), config, progress or _silent)


def _source(config: DataConfig) -> Source:
    check(config)
    if config.source == "demo":
        return DemoSet(config)
    if config.source == "coco":
        return CocoFolder(folder_of(config), config)
    if config.source == "folder":
        return ClassFolders(folder_of(config), config)
    return OwnDataset(config)


def _silent(what: str, done: int, total: int) -> None:
    pass
