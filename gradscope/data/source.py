"""Source and Listing: which images of which class there are, before any of them is read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gradscope.data.config import DataConfig
from gradscope.errors import DataError, nearest

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val")
"""The two splits, in the order in which they are read, shown and stored."""

VAL_FRACTION = 0.2
"""Share of each class that a source without splits of its own sets aside for validation."""

ReportProgress = Callable[[str, int, int], None]
"""Told (what is being done, how many are done, of how many)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image, not read yet."""

    name: str
    """Path below the root of the source, or an index as text: unique within its split."""
    label: str
    """Name of its class."""


@dataclass(frozen=True)
class Listing:
    """What a source holds of the chosen classes."""

    classes: tuple[str, ...]
    """Names, in the order of the class indices."""
    items: Mapping[str, Sequence[Item]]
    """Split -> images, in a fixed order."""
    read: Callable[[str, str], Tensor]
    """(split, name) -> uint8 (channels, height, width); raises `UnreadableError`."""
    parallel: bool = True
    """Whether several threads may read at once."""
    root: Path | None = None
    """Folder of lasting files that the names are paths of, or None."""
    left_out: Mapping[str, Counter[str]] = field(default_factory=dict)
    """Split -> why -> how many images."""
    notes: tuple[str, ...] = ()
    """What is worth knowing beyond the counts."""


class Source(Protocol):
    """Where images come from."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        ...

    @property
    def place(self) -> str:
        """What tells this source from others of its kind; part of the cache key."""
        ...

    def content(self) -> str:
        """Digest of what can be told about the content without reading an image."""
        ...

    def opened(self, progress: ReportProgress) -> AbstractContextManager[Listing]:
        """List the images, which can be read until the context ends."""
        ...


class UnreadableError(Exception):
    """One image cannot be read; the message says why in a few words."""


def choose(listing: Listing, config: DataConfig, where: str) -> Listing:
    """Keep the images that the configuration asks for.

    Classes that nobody named and that have no image in either split are left out. Which images
    are drawn depends on the seed and their names alone: not on the order of the source, nor on
    other images; 10 per class are among the 20 per class.

    Args:
        listing: everything that the source has of the classes.
        config: limits per class, and the seed.
        where: name of the source in messages.

    Raises:
        DataError: fewer than two classes are left, or one has no images in a split.
    """
    counts = {split: Counter(item.label for item in listing.items[split]) for split in SPLITS}
    empty = [name for name in listing.classes if not any(counts[s][name] for s in SPLITS)]
    notes = list(listing.notes)
    classes = listing.classes
    if empty and not config.classes:
        classes = tuple(name for name in classes if name not in empty)
        notes.append(f"left out, no images: {shown(empty)}")
    check_counts(counts, classes, where, listing.left_out)
    if len(classes) < 2:
        raise DataError(
            f"{where}: a classifier needs two classes with images, there are {len(classes)}; "
            "add images, or name more in data.classes"
        )
    limits = {"train": config.train_per_class, "val": config.val_per_class}
    items: dict[str, Sequence[Item]] = {}
    left_out = {split: Counter(listing.left_out.get(split, {})) for split in SPLITS}
    for split in SPLITS:
        by_class = {name: [i for i in listing.items[split] if i.label == name] for name in classes}
        kept = {
            item.name
            for name, members in by_class.items()
            for item in draw(members, limits[split], f"{config.seed}/{split}/{name}")
        }
        items[split] = [item for item in listing.items[split] if item.name in kept]
        left_out[split]["not drawn"] = sum(map(len, by_class.values())) - len(items[split])
    return replace(listing, classes=classes, items=items, left_out=left_out, notes=tuple(notes))


def check_counts(
    counts: Mapping[str, Mapping[str, int]],
    classes: Iterable[str],
    where: str,
    left_out: Mapping[str, Mapping[str, int]],
) -> None:
    """Refuse classes without images.

    Raises:
        DataError: a class has no image in a split; the message tells what was left out.
    """
    for split in SPLITS:
        for name in classes:
            if not counts[split].get(name):
                why = ", ".join(f"{n} {why}" for why, n in left_out.get(split, {}).items() if n)
                because = f" (left out: {why})" if why else ""
                hint = " or set data.overlap: largest" if "overlap" in why else ""
                raise DataError(
                    f"{where}: class '{shown([name])}' has no image in the {split} split{because}; "
                    f"add images, leave the class out of data.classes{hint}"
                )


def draw(items: Sequence[Item], limit: int | None, salt: str) -> Sequence[Item]:
    """At most `limit` items, as if at random: those whose hashes with the salt are smallest."""
    if limit is None or limit >= len(items):
        return items
    return sorted(items, key=lambda item: _rank(item.name, salt))[:limit]


def split_off(items: Sequence[Item], seed: int) -> dict[str, Sequence[Item]]:
    """Set `VAL_FRACTION` of each class aside for validation, at least one image of two."""
    val: set[str] = set()
    for name in {item.label for item in items}:
        members = [item for item in items if item.label == name]
        count = max(1, round(VAL_FRACTION * len(members))) if len(members) > 1 else 0
        val.update(item.name for item in draw(members, count, f"{seed}/split/{name}"))
    return {
        "train": [item for item in items if item.name not in val],
        "val": [item for item in items if item.name in val],
    }


def wanted_classes(asked: Sequence[str], available: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes asked for, or all.

    Raises:
        DataError: one is unknown or named twice.
    """
    for name in asked:
        if name not in available:
            choices = nearest(name, available) if available else "there are none"
            raise DataError(f"{where}: unknown class '{name}'; {choices}")
        if asked.count(name) > 1:
            raise DataError(f"data.classes: '{name}' is named twice; name each class once")
    return tuple(asked) or tuple(available)


def shown(names: Iterable[str], most: int = 5) -> str:
    """Names from outside as they may be shown: the first few, without control characters."""
    listed = list(names)
    clean = ["".join(c if c.isprintable() else "?" for c in name) for name in listed[:most]]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(clean) + more


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; (-1, -1) when there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs half as much again, 10,000 times
    except (OSError, ValueError):  # ValueError: a name that no file system takes
        return -1, -1
    return found.st_size, found.st_mtime_ns


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read into a DataError that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check it and its permissions"
        ) from error


def _rank(name: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}/{name}".encode("utf-8", "surrogatepass")).digest()
