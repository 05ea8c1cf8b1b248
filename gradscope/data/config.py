"""DataConfig: which images a grid trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


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
