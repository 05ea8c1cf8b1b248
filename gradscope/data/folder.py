"""ClassFolders: one folder of images per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradscope.data.config import DataConfig
from gradscope.data.decode import read_image
from gradscope.data.source import (
    Item,
    Listing,
    ReportProgress,
    readable,
    split_off,
    stamp,
    wanted_classes,
)
from gradscope.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)
"""Files with other endings are no images, and are passed over."""

_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class ClassFolders:
    """``root/train/<class>/`` and ``root/val/<class>/``, or ``root/<class>/`` for both.

    Without split folders, a fifth of each class is set aside for validation, chosen by the seed.
    Images may lie in subfolders of their class; hidden files and folders are passed over.
    """

    root: Path
    config: DataConfig

    @property
    def title(self) -> str:
        """The folder."""
        return f"class folders {self.root}"

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def content(self) -> str:
        """Digest of the names, sizes and times of change of all images."""
        digest = hashlib.sha256()
        for split, base in self._bases().items():
            for name in _class_names(base):
                for path in _images(base / name):
                    digest.update(repr((split, str(path), stamp(path))).encode())
        return digest.hexdigest()

    @contextmanager
    def opened(self, progress: ReportProgress) -> Iterator[Listing]:
        """List the images.

        Raises:
            DataError: there are no class folders, or a class asked for has none.
        """
        bases = self._bases()
        progress("listing images", 0, 1)
        names = sorted({name for base in bases.values() for name in _class_names(base)})
        if not names:
            raise DataError(
                f"data.root: {self.root} holds no class folders; sort the images into "
                "train/CLASS and val/CLASS, or CLASS, or use source: coco"
            )
        classes = wanted_classes(self.config.classes, names, self.title)
        found = {split: self._items(base, classes) for split, base in bases.items()}
        items = found if "val" in found else split_off(found["all"], self.config.seed)
        yield Listing(
            classes,
            items,
            lambda _, name: read_image(self.root / name, self.config.size),
            root=self.root,
        )

    def _bases(self) -> dict[str, Path]:
        """Split -> folder of class folders; one entry, ``all``, without split folders."""
        train = self.root / "train"
        vals = [self.root / name for name in _VAL_NAMES if (self.root / name).is_dir()]
        if train.is_dir() and vals:
            return {"train": train, "val": vals[0]}
        if train.is_dir() or vals:
            there, missing = ("train", "val") if train.is_dir() else (vals[0].name, "train")
            raise DataError(
                f"data.root: {self.root} holds {there} but no {missing} folder; "
                f"add {missing}/CLASS folders, or give {self.root / there} to have it split"
            )
        return {"all": self.root}

    def _items(self, base: Path, classes: tuple[str, ...]) -> list[Item]:
        return [
            Item(path.relative_to(self.root).as_posix(), name)
            for name in classes
            for path in _images(base / name)
        ]


def _class_names(base: Path) -> list[str]:
    with readable(base):
        return sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(place, name)
