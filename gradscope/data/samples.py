"""What a data set of one's own gives: pixels, labels, targets and names of classes, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradscope.data.decode import to_tensor
from gradscope.errors import DataError


def pixels_of(image: Any, where: str) -> Tensor:
    """An image as uint8, shape (channels, height, width).

    Raises:
        DataError: it is no image of one or three channels, or not in 0..1.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return to_tensor(image, rgb=False)
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] not in {1, 3}:
        what = f"{tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(
            f"{where}: the image is {what}; return a Pillow image or a tensor "
            "(channels, height, width) with 1 or 3 channels"
        )
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{where}: pixels of {str(image.dtype).removeprefix('torch.')} in "
            f"{image.min():g}..{image.max():g}; return uint8, or floats in 0..1 (not normalised, "
            "training scales them to -1..1)"
        )
    return image.float().mul(255).round().to(torch.uint8)


def label_of(label: Any, where: str) -> int:
    """The index of a class.

    Raises:
        DataError: it is none.
    """
    number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if hasattr(number, "__index__") and int(number) >= 0:
        return int(number)
    raise DataError(f"{where}: label {label!r}; return the index of the class, counted from 0")


def targets_of(dataset: Any) -> list[int] | None:
    """The labels that a data set of torchvision knows without reading an image; else None."""
    targets = getattr(dataset, "targets", None)
    if isinstance(targets, Tensor):
        targets = targets.tolist()
    if not isinstance(targets, Sequence) or len(targets) != len(dataset):
        return None
    return [label_of(label, f"targets[{i}]") for i, label in enumerate(targets)]


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Names of the classes where the data set tells them; else None."""
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)) and names:
        return tuple(map(str, names))
    return None
