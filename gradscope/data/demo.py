"""DemoSet: five classes of drawn pictures, written as a COCO folder and read back as one."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.data.coco import CocoFolder
from gradscope.data.config import DataConfig
from gradscope.data.source import SPLITS, Listing, ReportProgress, wanted_classes
from gradscope.errors import DataError

_CATEGORY_IDS = {"airplane": 5, "bus": 6, "cat": 17, "dog": 18, "pizza": 59}
"""Class -> id of the category of that name in COCO."""

CLASSES = tuple(_CATEGORY_IDS)
"""Names of the classes."""

PER_CLASS = {"train": 400, "val": 100}
"""Pictures of each class where the configuration does not say."""

_DRAWN_BY = ("animals", "clutter", "demo", "drawing", "figure", "figures")
"""Modules of this room whose change draws other pictures."""


@dataclass(frozen=True)
class DemoSet:
    """The drawn demo set: embedded, deterministic, quick, and not quite easy.

    Nothing of it is stored but the cached arrays: on a miss it is drawn into a temporary COCO
    folder, which goes through the same loader as real images.
    """

    config: DataConfig

    @property
    def title(self) -> str:
        """A name."""
        return "drawn demo set"

    @property
    def place(self) -> str:
        """There is only one."""
        return "demo"

    def content(self) -> str:
        """Digest of the code that draws: a change of it draws again."""
        wanted_classes(self.config.classes, CLASSES, "data.source: demo")
        here = Path(__file__).parent
        return hashlib.sha256(
            b"".join((here / f"{name}.py").read_bytes() for name in _DRAWN_BY)
        ).hexdigest()

    @contextmanager
    def opened(self, progress: ReportProgress) -> Iterator[Listing]:
        """Draw the set and list it; it is gone when the context ends."""
        with tempfile.TemporaryDirectory(prefix="gradscope-demo-") as folder:
            export(Path(folder), self.config, progress)
            with CocoFolder(Path(folder), self.config).opened(progress) as listing:
                yield replace(listing, root=None)


def export(root: Path, config: DataConfig, progress: ReportProgress | None = None) -> None:
    """Draw the demo set of a configuration into a folder.

    Raises:
        DataError: an unknown class, or the folder cannot be written or already holds something.
    """
    classes = wanted_classes(config.classes, CLASSES, "data.source: demo")
    per_class = {
        "train": config.train_per_class or PER_CLASS["train"],
        "val": config.val_per_class or PER_CLASS["val"],
    }
    try:
        if root.exists() and any(root.iterdir()):
            raise DataError(f"{root}: the folder is not empty; name a new one")
        write_demo(root, per_class, config.seed, classes, progress)
    except OSError as error:
        raise DataError(
            f"{root}: cannot be written ({error.strerror or error}); name another folder"
        ) from error


def write_demo(
    root: Path,
    per_class: dict[str, int],
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    progress: ReportProgress | None = None,
) -> None:
    """Draw the demo set as a COCO folder: ``annotations/instances_*.json`` and ``images/``.

    The picture with a given seed, split, class and number is always the same, however many others
    are drawn.

    Args:
        root: folder, made when it is missing.
        per_class: split -> pictures of each class.
        seed: another seed draws other pictures.
        classes: which of `CLASSES`.
        progress: told after every few pictures.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    chosen = [name for name in CLASSES if name in classes]
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        total = per_class[split] * len(chosen)
        for number in range(per_class[split]):
            for name in chosen:
                if progress is not None and len(images) % 50 == 0:
                    progress(f"drawing {split} images", len(images), total)
                image, annotation = _draw(root, split, name, number, seed)
                identity = len(images) + 1
                images.append({"id": identity} | image)
                annotations.append({"id": identity, "image_id": identity} | annotation)
        data = {
            "info": {"description": f"gradscope demo set, seed {seed}, {split}", "version": "1"},
            "categories": [{"id": _CATEGORY_IDS[name], "name": name} for name in chosen],
            "images": images,
            "annotations": annotations,
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
        if progress is not None:
            progress(f"drawing {split} images", total, total)


def _draw(
    root: Path, split: str, name: str, number: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one picture into its file; its entries under images and annotations, without ids."""
    from gradscope.data.drawing import PIXELS, draw_picture

    category = _CATEGORY_IDS[name]
    key = (seed, SPLITS.index(split), category, number)
    picture = draw_picture(name, np.random.default_rng(key))
    file_name = f"{split}_{name}_{number:05d}.jpg"
    picture.image.save(root / "images" / file_name, quality=90)
    image = {"file_name": file_name, "width": PIXELS, "height": PIXELS}
    annotation = {
        "category_id": category,
        "bbox": picture.box,
        "area": picture.area,
        "iscrowd": 0,
        "segmentation": [],
    }
    return image, annotation
