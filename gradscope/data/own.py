"""OwnDataset: map-style data sets that the user's own factory returns."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gradscope.data.config import DataConfig
from gradscope.data.decode import to_square
from gradscope.data.samples import class_names_of, label_of, pixels_of, targets_of
from gradscope.data.source import (
    SPLITS,
    Item,
    Listing,
    ReportProgress,
    UnreadableError,
    split_off,
    wanted_classes,
)
from gradscope.errors import DataError, named
from gradscope.factory import load_factory
from gradscope.seeding import seeded

_PROBES = 32
"""Images of each data set that tell whether its content has changed."""

_WHOLE = "all"
"""Name of the one data set of a factory that leaves the split to us."""


@dataclass(frozen=True)
class OwnDataset:
    """Images that ``package.module:factory`` returns, read once and kept as uint8.

    The factory returns (train, val), a mapping with these keys, or one data set, of which a fifth
    of each class is set aside for validation. A sample is (image, class index): the image a Pillow
    image, or a tensor (channels, height, width) of uint8 or of floats in 0..1. Names of classes
    come from an attribute ``classes``, labels known without reading from ``targets``, as in
    torchvision's data sets. Random augmentation would be frozen, so leave it out.

    The cache notices changes of the factory's module, its arguments, the length and a sample of
    the images.
    """

    config: DataConfig

    @property
    def title(self) -> str:
        """The factory."""
        return f"data set {self.config.source}"

    @property
    def place(self) -> str:
        """The folder: relative paths in the factory depend on it."""
        return str(Path.cwd())

    def content(self) -> str:
        """Digest of the factory's module, and of lengths, labels and a sample of the images."""
        digest = hashlib.sha256()
        module = inspect.getmodule(load_factory(self.config.source))
        path = getattr(module, "__file__", None)
        if path and Path(path).is_file():
            digest.update(Path(path).read_bytes())
        for split, dataset in self._datasets.items():
            length = len(dataset)
            targets = targets_of(dataset)
            digest.update(repr((split, length, targets, class_names_of(dataset))).encode())
            with _repeatable():
                for i in range(0, length, max(1, length // _PROBES)):
                    try:
                        image, label = self._sample(split, i)
                    except UnreadableError as error:
                        digest.update(str(error).encode())
                    else:
                        digest.update(repr((tuple(image.shape), label)).encode())
                        digest.update(image.contiguous().numpy().data)
        return digest.hexdigest()

    @contextmanager
    def opened(self, progress: ReportProgress) -> Iterator[Listing]:
        """Ask the data sets for their labels.

        Raises:
            DataError: labels and names of classes do not fit.
        """
        with _repeatable():
            failed: dict[tuple[str, str], UnreadableError] = {}
            labels = {split: self._labels(split, failed, progress) for split in self._datasets}
            highest = max((max(each.values(), default=-1) for each in labels.values()), default=-1)
            names = next(filter(None, map(class_names_of, self._datasets.values())), None)
            names = names or tuple(str(i) for i in range(highest + 1))
            if highest >= len(names):
                raise DataError(
                    f"{self.title}: label {highest}, but {len(names)} names in 'classes'; "
                    "labels count from 0"
                )
            classes = wanted_classes(self.config.classes, names, self.title)
            found = {
                split: [
                    Item(str(i), names[label])
                    for i, label in each.items()
                    if names[label] in classes
                ]
                for split, each in labels.items()
            }
            items = split_off(found[_WHOLE], self.config.seed) if _WHOLE in found else found

            def read(split: str, name: str) -> Tensor:
                source = _WHOLE if _WHOLE in found else split
                if (source, name) in failed:
                    raise failed[source, name]
                return self._sample(source, int(name))[0]

            yield Listing(classes, items, read, parallel=False)

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """Split -> map-style data set."""
        factory = load_factory(self.config.source)
        try:
            made = factory(**self.config.args)
        except Exception as error:
            raise DataError(
                f"{self.title}: the factory failed with {named(error, 200)}; mend it or data.args"
            ) from error
        if isinstance(made, Mapping) and set(made) == set(SPLITS):
            found = {split: made[split] for split in SPLITS}
        elif isinstance(made, (tuple, list)) and len(made) == len(SPLITS):
            found = dict(zip(SPLITS, made, strict=True))
        else:
            found = {_WHOLE: made}
        for dataset in found.values():
            if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
                raise DataError(
                    f"{self.title}: the factory returned a {type(dataset).__name__}; it returns a "
                    "map-style data set (with len() and [index]), or a pair (train, val) of them"
                )
        return found

    def _labels(
        self, split: str, failed: dict[tuple[str, str], UnreadableError], progress: ReportProgress
    ) -> dict[int, int]:
        """Index -> label; samples that cannot be read pass for the first class until counted."""
        dataset = self._datasets[split]
        targets = targets_of(dataset)
        if targets is not None:
            return dict(enumerate(targets))
        labels = {}
        for i in range(len(dataset)):
            if i % 100 == 0:
                progress(f"reading {split} labels", i, len(dataset))
            try:
                labels[i] = self._sample(split, i)[1]
            except UnreadableError as error:
                labels[i] = 0
                failed[split, str(i)] = error
        return labels

    def _sample(self, split: str, index: int) -> tuple[Tensor, int]:
        """One image as uint8 of the right size, and its label."""
        try:
            sample = self._datasets[split][index]
        except Exception as error:
            raise UnreadableError(named(error, 200)) from error
        where = f"{self.title}: sample {index}"
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise DataError(
                f"{where} is a {type(sample).__name__}; a sample is (image, class index)"
            )
        return to_square(pixels_of(sample[0], where), self.config.size), label_of(sample[1], where)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Make random transforms repeatable, and give the caller's generators back as they were."""
    with seeded(0):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that transforms of others draw from
        yield
