"""Splits: what every source of images gives, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images of one split in memory or memory-mapped, map-style.

    ``dataset[i]`` is (uint8 tensor of shape (channels, height, width), class index).
    """

    images: Tensor
    """uint8, shape (images, channels, height, width); may be a memory map: do not write."""
    labels: Tensor
    """int64, shape (images,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at the indices, gathered in one copy."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class Splits:
    """Training and validation images of one data set."""

    train: ImageDataset
    val: ImageDataset
    classes: tuple[str, ...]
    """Names, in the order of the class indices."""
    source: str
    """What it was read from, for people."""
    fingerprint: str
    """Hash of the content and the settings, hex."""
    notes: tuple[str, ...] = ()
    """What was left out and why, one line each."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Split -> class -> number of images."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """Split -> why -> number of images; reasons that never applied are absent."""
