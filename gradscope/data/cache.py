"""Cache: one uint8 array per split on disk, mapped into memory, rebuilt when anything changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradscope.data.config import DataConfig, from_home
from gradscope.data.dataset import ImageDataset, Splits
from gradscope.data.reading import write_split
from gradscope.data.source import (
    SPLITS,
    ReportProgress,
    Source,
    check_counts,
    choose,
    stamp,
)
from gradscope.errors import DataError

FORMAT = 1
"""Of the entries on disk; a new number leaves old entries alone."""


def default_cache_dir() -> Path:
    """The folder GRADSCOPE_CACHE names, or ``~/.cache/gradscope``.

    Raises:
        DataError: there is no home folder.
    """
    named = os.environ.get("GRADSCOPE_CACHE") or "~/.cache/gradscope"
    return from_home(Path(named), "GRADSCOPE_CACHE")


@dataclass(frozen=True)
class Cache:
    """Arrays of images in a folder that several processes may use at once.

    An entry is a folder with one manifest and the arrays that it names. Arrays are named by their
    digest and never change; the manifest is replaced in one step, after them. So a reader finds
    the old entry or the new one, never a mixture, and what it has mapped stays mapped.
    """

    root: Path

    def load(self, source: Source, config: DataConfig, progress: ReportProgress) -> Splits:
        """Map the images of a source; read them first when the entry is absent, stale or damaged.

        Raises:
            DataError: the source is bad, or the folder cannot be written.
        """
        from filelock import FileLock

        content = source.content()
        entry = self.root / _entry_name(source, config)
        splits = _mapped(entry, content, source.title)
        if splits is not None:
            return splits
        try:
            entry.mkdir(parents=True, exist_ok=True)
            with FileLock(entry / "lock"):
                splits = _mapped(entry, content, source.title)  # another process was faster
                if splits is None:
                    try:
                        _fill(entry, source, config, content, progress)
                    finally:
                        _sweep(entry)
                    splits = _mapped(entry, content, source.title)
        except OSError as error:
            raise DataError(
                f"{entry}: cannot write the cache ({error.strerror or error}); "
                "free some space or set GRADSCOPE_CACHE to another folder"
            ) from error
        if splits is None:
            raise DataError(f"{entry}: files change while they are read; load again when they rest")
        return splits


def _entry_name(source: Source, config: DataConfig) -> str:
    settings = config.model_dump(mode="json", exclude={"root"})
    key = json.dumps([FORMAT, source.place, settings], sort_keys=True, default=repr)
    kind = re.sub(r"[^a-zA-Z0-9]+", "-", config.source)[:40]
    return f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _mapped(entry: Path, content: str, title: str) -> Splits | None:
    """The entry as memory-mapped arrays, or None when it is absent, stale or damaged."""
    try:
        manifest = json.loads((entry / "manifest.json").read_bytes())
        if manifest["content"] != content or not _unchanged(manifest):
            return None
        datasets = {split: _map_split(entry, manifest["splits"][split]) for split in SPLITS}
        classes = tuple(manifest["classes"])
        return Splits(
            train=datasets["train"],
            val=datasets["val"],
            classes=classes,
            source=title,
            fingerprint=manifest["fingerprint"],
            notes=tuple(manifest["notes"]),
            counts={split: _counts(datasets[split].labels.tolist(), classes) for split in SPLITS},
            left_out=manifest["left_out"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whatever is wrong with it, it is written again


def _map_split(entry: Path, stored: Mapping[str, Any]) -> ImageDataset:
    path = entry / f"{stored['sha256']}.u8"
    # Copy-on-write: torch wants writable memory, and nothing a user does reaches the file.
    array = np.memmap(path, dtype=np.uint8, mode="c", shape=tuple(stored["shape"]))
    if hashlib.sha256(array.data).hexdigest() != stored["sha256"]:
        raise ValueError("damaged")
    labels = torch.tensor(stored["labels"], dtype=torch.int64)
    if array.nbytes != path.stat().st_size or len(labels) != len(array):
        raise ValueError("damaged")
    return ImageDataset(torch.from_numpy(array), labels)


def _unchanged(manifest: Mapping[str, Any]) -> bool:
    root = manifest["root"]
    return root is None or all(
        stamp(Path(root, name)) == tuple(before)
        for split in SPLITS
        for name, *before in manifest["splits"][split]["files"]
    )


def _counts(labels: Sequence[int], classes: Sequence[str]) -> dict[str, int]:
    found = Counter(labels)
    return {name: found[i] for i, name in enumerate(classes)}


def _fill(
    entry: Path, source: Source, config: DataConfig, content: str, progress: ReportProgress
) -> None:
    with source.opened(progress) as everything:
        listing = choose(everything, config, source.title)
        root = listing.root
        files = {
            split: [(item.name, *stamp(root / item.name)) for item in listing.items[split]]
            if root is not None
            else []
            for split in SPLITS
        }
        written = {
            split: write_split(
                entry, split, listing, config=config, title=source.title, progress=progress
            )
            for split in SPLITS
        }
    left_out = {split: Counter(listing.left_out[split]) for split in SPLITS}
    notes = list(listing.notes)
    for split, done in written.items():
        left_out[split]["unreadable"] = len(done.unreadable)
        if done.unreadable:
            notes.append(f"{split}: {len(done.unreadable)} unreadable: {done.why()}")
    counts = {split: _counts(done.labels, listing.classes) for split, done in written.items()}
    check_counts(counts, listing.classes, source.title, left_out)
    stored = {
        split: {
            "sha256": done.sha256,
            "shape": done.shape,
            "labels": done.labels,
            "files": files[split],
        }
        for split, done in written.items()
    }
    facts = [listing.classes, [(each.sha256, each.shape, each.labels) for each in written.values()]]
    manifest = {
        "content": content,
        "fingerprint": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "root": None if root is None else str(root),
        "classes": listing.classes,
        "left_out": {s: {why: n for why, n in left_out[s].items() if n} for s in SPLITS},
        "notes": notes,
        "splits": stored,
    }
    with _replacing(entry / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` in one step when all went well."""
    temporary = path.with_suffix(".tmp")
    yield temporary
    temporary.replace(path)


def _sweep(entry: Path) -> None:
    """Remove arrays that the manifest does not name, and what a killed process left behind."""
    manifest = entry / "manifest.json"
    named = manifest.read_text() if manifest.exists() else ""
    for path in entry.iterdir():
        if path.suffix in {".u8", ".tmp"} and path.stem not in named:
            path.unlink(missing_ok=True)
