"""write_split(): the images of one split, read in parallel and written to one file."""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gradscope.data.config import DataConfig
from gradscope.data.source import Item, Listing, ReportProgress, UnreadableError, shown
from gradscope.errors import DataError

_CHUNK = 128
"""Images read between two reports of progress, and held in memory at once."""


@dataclass
class Written:
    """One split as it is being written."""

    labels: list[int] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    sha256: str = ""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Name -> why."""

    def why(self) -> str:
        """The first few unreadable images, with the reason for each."""
        return shown((f"{name} ({why})" for name, why in self.unreadable.items()), most=3)


def write_split(
    folder: Path,
    split: str,
    listing: Listing,
    *,
    config: DataConfig,
    title: str,
    progress: ReportProgress,
) -> Written:
    """Read the images of a split and append them to one file, ``<digest>.u8``.

    Args:
        folder: where the file goes.
        split: which split.
        listing: what to read.
        config: states how many images may be unreadable.
        title: name of the source in messages.
        progress: told after each chunk.

    Raises:
        DataError: too many images are unreadable, or they differ in their channels.
    """
    items = listing.items[split]
    limit = config.max_unreadable_fraction * len(items) + 1e-9  # 0.29 * 100 is below 29
    done, digest = Written(), hashlib.sha256()
    temporary = folder / f"{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            for count, (item, image) in enumerate(_read(split, listing, progress)):
                if isinstance(image, UnreadableError):
                    done.unreadable[item.name] = str(image)
                    if len(done.unreadable) > limit:
                        raise DataError(_too_many(title, split, done, count + 1, config))
                    continue
                done.shape = _common_shape(done.shape, tuple(image.shape), item, title)
                pixels = image.contiguous().numpy().data
                file.write(pixels)
                digest.update(pixels)
                done.labels.append(listing.classes.index(item.label))
            file.flush()
            os.fsync(file.fileno())
        done.shape = (len(done.labels), *done.shape)
        done.sha256 = digest.hexdigest()
        temporary.replace(folder / f"{done.sha256}.u8")
    finally:
        temporary.unlink(missing_ok=True)
    return done


def _read(
    split: str, listing: Listing, progress: ReportProgress
) -> Iterator[tuple[Item, Tensor | UnreadableError]]:
    """The images in their order, files by as many threads as there are cores."""

    def attempt(item: Item) -> Tensor | UnreadableError:
        try:
            return listing.read(split, item.name)
        except UnreadableError as error:
            return error

    items = listing.items[split]
    what = f"reading {split} images"
    # A user's own data set is read in order by one thread: nobody promised that it bears more.
    workers = _cores() if listing.parallel else 1
    # Decoders warn about odd but readable files; what matters comes as an error.
    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in range(0, len(items), _CHUNK):
            progress(what, start, len(items))
            chunk = items[start : start + _CHUNK]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)
    progress(what, len(items), len(items))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _common_shape(
    shape: tuple[int, ...], new: tuple[int, ...], item: Item, title: str
) -> tuple[int, ...]:
    if shape and shape != new:
        raise DataError(
            f"{title}: image {shown([item.name])} has {new[0]} channels, those before {shape[0]}; "
            "give all images the same number of channels"
        )
    return new


def _too_many(title: str, split: str, done: Written, seen: int, config: DataConfig) -> str:
    return (
        f"{title}: {len(done.unreadable)} of the first {seen} {split} images are unreadable, more "
        f"than data.max_unreadable_fraction = {config.max_unreadable_fraction:g} of the split "
        f"allows: {done.why()}; restore the files or raise the limit"
    )
