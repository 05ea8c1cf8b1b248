"""DataConfig: which images a grid trains on; read and checked without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gradscope.errors import DataError, nearest

_NAMES = ("demo", "coco", "folder")
"""Sources beside the user's own."""


class DataConfig(BaseModel):
    """Which images, of which classes, how many, at which size."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    source: str = "demo"
    """``demo``, ``coco``, ``folder``, or ``package.module:factory`` of the user's own."""
    root: Path | None = None
    """Folder of the data set, for ``coco`` and ``folder``."""
    classes: tuple[str, ...] = ()
    """Which classes, in which order; empty: all that the source has."""
    train_per_class: PositiveInt | None = None
    """At most so many training images of each class; None: all."""
    val_per_class: PositiveInt | None = None
    """The same of the images to judge by."""
    size: PositiveInt = 64
    """Images are resized to size x size pixels."""
    overlap: Literal["drop", "largest"] = "drop"
    """Images that contain two of the classes: left out, or the class with the largest area wins."""
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    """A larger share of unreadable images stops the run before training."""
    seed: int = Field(0, ge=0)
    """Which images are drawn when fewer than all are asked for; seeds the demo set."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the user's own factory."""


def check(config: DataConfig) -> None:
    """Refuse what makes no sense before anything is read.

    Raises:
        DataError: the source is unknown, takes no such setting, or its folder is missing.
    """
    if config.source not in _NAMES and ":" not in config.source:  # first: a typo explains the rest
        raise DataError(
            f"data.source: unknown source '{config.source}'; {nearest(config.source, _NAMES)}, "
            "or package.module:factory"
        )
    if config.root is not None and config.source not in {"coco", "folder"}:
        raise DataError(
            f"data.root: source '{config.source}' takes no folder; "
            "set data.source: coco (or folder), or leave data.root out"
        )
    if config.args and ":" not in config.source:
        raise DataError(
            f"data.args: source '{config.source}' takes none; leave them out, or set "
            "data.source: package.module:factory"
        )
    if config.source in {"coco", "folder"}:
        folder_of(config)


def folder_of(config: DataConfig) -> Path:
    """The folder of a source that has one, absolute.

    Raises:
        DataError: none is given, or it is not there.
    """
    if config.root is None:
        raise DataError(
            f"data.root: source '{config.source}' needs a folder; set data.root: FOLDER"
        )
    root = from_home(config.root, "data.root")
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataError(f"data.root: {root} {what}; give the folder that holds the data set")
    return root.resolve()


def from_home(path: Path, setting: str) -> Path:
    """The path, with ``~`` as the home folder.

    Raises:
        DataError: there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise DataError(
            f"{setting}: {path} starts at a home folder that does not exist; give the whole path"
        ) from None
