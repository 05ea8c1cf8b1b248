"""CocoFolder: COCO instances annotations beside their images; the only file with pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from gradscope.data.config import DataConfig
from gradscope.data.decode import read_image
from gradscope.data.source import (
    SPLITS,
    Item,
    Listing,
    ReportProgress,
    readable,
    shown,
    stamp,
    wanted_classes,
)
from gradscope.errors import DataError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

_ANNOTATIONS = (
    ("annotations/instances_train.json", "annotations/instances_val.json"),
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ("annotations/instances_train2014.json", "annotations/instances_val2014.json"),
    ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
)
"""Usual places below the root, the first pair that is there counts."""

_TWO = "two of the classes (overlap: drop)"


@dataclass(frozen=True)
class CocoFolder:
    """Images of an object detection data set as a classification task.

    An image belongs to a class when an annotation says that it contains it, a crowd region as well
    as a single object: a crowd of dogs shows dogs. See `assign` for images with several classes.
    """

    root: Path
    config: DataConfig

    @property
    def title(self) -> str:
        """The folder."""
        return f"COCO folder {self.root}"

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def content(self) -> str:
        """Digest of both annotation files.

        Raises:
            DataError: there are none.
        """
        digests = []
        for path in self._annotation_files().values():
            with readable(path), path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return "-".join(digests)

    @contextmanager
    def opened(self, progress: ReportProgress) -> Iterator[Listing]:
        """Read the annotations.

        Raises:
            DataError: they are no COCO instances, do not fit together, or lack a class.
        """
        tables = {}
        for done, (split, path) in enumerate(self._annotation_files().items()):
            progress("reading annotations", done, len(SPLITS))
            tables[split] = _Table(path, _indexed(_checked(path)))
        progress("reading annotations", len(SPLITS), len(SPLITS))
        known = list(dict.fromkeys(name for table in tables.values() for name in table.categories))
        classes = wanted_classes(self.config.classes, known, self.title)
        items, left_out = {}, {}
        for split, table in tables.items():
            chosen, ambiguous = table.labels(classes, self.config.overlap)
            folder = self._image_folder(split, table, list(chosen))
            items[split] = [
                Item((folder / table.file_name(image)).as_posix(), name)
                for image, name in chosen.items()
            ]
            left_out[split] = Counter({_TWO: ambiguous})
        yield Listing(
            classes,
            items,
            lambda _, name: read_image(self.root / name, self.config.size),
            root=self.root,
            left_out=left_out,
            notes=_leak(items),
        )

    def _annotation_files(self) -> dict[str, Path]:
        for pair in _ANNOTATIONS:
            paths = [self.root / name for name in pair]
            there = [path for path in paths if path.is_file()]
            if len(there) == len(paths):
                return dict(zip(SPLITS, paths, strict=True))
            if there:
                missing = next(path for path in paths if path not in there)
                raise DataError(
                    f"{missing}: no such file beside {there[0].name}; both splits are needed, "
                    "add the annotations of the other one"
                )
        raise DataError(
            f"data.root: {self.root} holds no COCO annotations; "
            f"expected {' and '.join(_ANNOTATIONS[0])} (or ...2017.json, ...2014.json)"
        )

    def _image_folder(self, split: str, table: _Table, images: Sequence[Hashable]) -> PurePosixPath:
        """Where below the root the first images lie; a file name may hold folders of its own."""
        stem = table.path.stem.removeprefix("instances_")
        beside = table.path.parent.relative_to(self.root).as_posix()
        names = (stem, f"images/{stem}", "images", split, f"images/{split}", beside, ".")
        folders = [PurePosixPath(name) for name in dict.fromkeys(names)]
        sample = [table.file_name(image) for image in images[:20]]
        hits = [sum(stamp(self.root / f / name) > (-1, -1) for name in sample) for f in folders]
        if sample and not any(hits):
            raise DataError(
                f"{table.path}: none of its first images, such as {shown(sample[:1])}, is in "
                f"{self.root} under {', '.join(map(str, folders))}; put the images there"
            )
        return folders[hits.index(max(hits))]


@dataclass(frozen=True)
class _Table:
    """The annotations of one split."""

    path: Path
    coco: COCO

    @property
    def categories(self) -> dict[str, list[int]]:
        """Name -> ids, in the order of the ids; a name that has several is one class."""
        found: dict[str, list[int]] = defaultdict(list)
        for category in self.coco.loadCats(self.coco.getCatIds()):
            found[category["name"]].append(category["id"])
        return found

    def labels(
        self, classes: Sequence[str], overlap: Literal["drop", "largest"]
    ) -> tuple[dict[Hashable, str], int]:
        """Image id -> class, in the order of the file; and how many images are ambiguous."""
        names = {i: name for name in classes for i in self.categories.get(name, ())}
        chosen, ambiguous = {}, 0
        for image in self.coco.imgs:
            areas = dict.fromkeys(classes, -1.0)  # keeps the order of the classes
            for annotation in self.coco.imgToAnns.get(image, ()):
                if name := names.get(annotation["category_id"]):
                    areas[name] = max(areas[name], 0.0) + self._area(annotation, overlap)
            present = {name: area for name, area in areas.items() if area >= 0}
            winner = assign(present, overlap) if present else None
            if winner is not None:
                chosen[image] = winner
            ambiguous += bool(present) and winner is None
        return chosen, ambiguous

    def file_name(self, image: Hashable) -> str:
        """Path of an image as the file gives it."""
        name: str = self.coco.imgs[image]["file_name"]
        return name

    def _area(self, annotation: Mapping[str, Any], overlap: str) -> float:
        if overlap == "drop":
            return 0.0  # only presence counts
        area, box = annotation.get("area"), annotation.get("bbox")
        numbers = (int, float)
        if area is None and isinstance(box, list) and len(box) == 4:
            area = box[2] * box[3] if all(isinstance(side, numbers) for side in box) else None
        if not isinstance(area, numbers) or not 0 <= area < math.inf:
            raise DataError(
                f"{self.path}: annotation {annotation['id']} has no valid area or bbox, which "
                "overlap: largest compares; add the area or set overlap: drop"
            )
        return float(area)


def assign(areas: Mapping[str, float], overlap: Literal["drop", "largest"]) -> str | None:
    """The class of an image.

    Args:
        areas: chosen classes that the image contains -> total area of their objects, in pixels;
            at least one.
        overlap: what is done with several: ``drop`` none is right, ``largest`` the class with the
            largest total area, of equal ones the first.

    Returns:
        The class, or None: leave the image out.
    """
    if len(areas) > 1 and overlap == "drop":
        return None
    return max(areas, key=lambda name: areas[name])


def _checked(path: Path) -> dict[str, Any]:
    """The parsed file, when it is what its name says.

    Raises:
        DataError: it is no JSON, no COCO instances file, or its ids do not match.
    """
    with readable(path):
        text = path.read_bytes()
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: no JSON ({str(error)[:80]}); download or export the file again"
        ) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(
                f"{path}: no COCO instances file, it has no list '{key}'; give an "
                "instances_*.json (captions and person_keypoints files do not name classes)"
            )
    _check_entries(path, "images", data["images"], ("id", "file_name"))
    _check_entries(path, "categories", data["categories"], ("id", "name"))
    _check_entries(path, "annotations", data["annotations"], ("id", "image_id", "category_id"))
    for name, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in data[name]}
        if len(known) < len(data[name]):
            twice = Counter(entry["id"] for entry in data[name]).most_common(1)[0][0]
            raise DataError(f"{path}: {name} id {twice!r} is used twice; give each its own id")
        stray = [each for each in data["annotations"] if each[key] not in known]
        if stray:
            raise DataError(
                f"{path}: {len(stray)} annotations, the first with id {stray[0]['id']!r}, name "
                f"{key} {stray[0][key]!r}, which is not under {name}; "
                f"remove them or restore the {name} (are annotations and images of one release?)"
            )
    _check_file_names(path, data["images"])
    return dict(data)


def _check_file_names(path: Path, images: list[dict[str, Any]]) -> None:
    times = Counter(image["file_name"] for image in images)
    if len(times) < len(images):
        [(name, most)] = times.most_common(1)
        raise DataError(
            f"{path}: file_name '{shown([name])}' belongs to {most} images; "
            "list each file once, with all its annotations"
        )
    for image in images:
        place = PurePosixPath(image["file_name"])
        if place.is_absolute() or ".." in place.parts or "\0" in place.name:
            raise DataError(
                f"{path}: file_name '{shown([str(place)])}' leaves the image folder; "
                "write it relative to the folder of images"
            )


def _check_entries(path: Path, name: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    kinds: dict[str, tuple[type, ...]] = {"file_name": (str,), "name": (str,)}
    for i, entry in enumerate(entries):
        for key in keys:
            kind = kinds.get(key, (int, str))
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                wanted = "text" if kind == (str,) else "a number"
                raise DataError(
                    f"{path}: {name}[{i}] has no valid '{key}'; each entry of an instances file "
                    f"has one, {wanted}"
                )


def _indexed(data: dict[str, Any]) -> COCO:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
        coco.createIndex()
    return coco


def _leak(items: Mapping[str, Sequence[Item]]) -> tuple[str, ...]:
    """A warning when images are in both splits, which makes validation look too good."""
    both = {item.name for item in items["train"]} & {item.name for item in items["val"]}
    if not both:
        return ()
    return (f"{len(both)} images are in both splits: {shown(sorted(both))}",)
