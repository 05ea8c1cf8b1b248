"""What a cell is trained with beside its configuration: the user's own code, and the data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from gradscope.ablation.code import code_of, digest
from gradscope.ablation.settings import CellConfig
from gradscope.factory import load_factory
from gradscope.models.config import BUILT_IN
from gradscope.study.results import Origin

TRAINER = 1
"""Of the built-in loop and networks; raised when they give other numbers than before."""

_MOST_BYTES = 64 << 20
"""Of a file that an argument names; of a larger one, its beginning and its length."""

_LOADED: WeakKeyDictionary[ModuleType, dict[str, str]] = WeakKeyDictionary()
"""Module of a factory -> digests of the files that it was loaded from, and not of what they hold
by now."""


def origin_of(config: CellConfig, data: str = "", *, loaded: bool = False) -> Origin:
    """What a cell is trained with.

    Args:
        config: of the cell.
        data: digest of its images.
        loaded: the code that this process has imported, which it does when it has not; False: the
            code that lies on disk.

    Raises:
        ModelError: a factory cannot be imported; only where it is ``loaded``.
    """
    specs = _specs(config)
    files = {name: digest for spec in specs for name, digest in _files(spec, loaded).items()}
    for args in (config.train.args, *(c.args for c in (config.model, config.data) if c)):
        files |= {str(path): _file(path) for path in _paths(args)}
    built_in = not config.train.function or (config.model and config.model.name in BUILT_IN)
    return Origin(files, TRAINER if built_in else 0, data)


def _specs(config: CellConfig) -> list[str]:
    """``package.module:factory`` of all that the cell names of the user's own."""
    named = [config.train.function]
    named += [config.model.name] if config.model else []
    named += [config.data.source] if config.data else []
    return [spec for spec in named if ":" in spec]


def _files(spec: str, loaded: bool) -> dict[str, str]:
    name = spec.partition(":")[0]
    if not loaded:
        return code_of(name)
    load_factory(spec)
    module = sys.modules.get(name)
    if module is None:  # it removed itself: nothing to remember it by
        return code_of(name)
    if module not in _LOADED:
        _LOADED[module] = code_of(name)
    return _LOADED[module]


def _paths(value: Any) -> Iterator[Path]:
    """Files that arguments name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, str) and value and "\0" not in value and len(value) < 4096:
        path = Path(value)
        if path.is_file():
            yield path


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return digest(file.read(_MOST_BYTES), path.stat().st_size.to_bytes(8, "little"))


def changes(known: Iterable[tuple[str, Origin | None, Origin]]) -> dict[tuple[str, ...], list[str]]:
    """What changed since cells were trained.

    Args:
        known: cell id, what it was trained with, what it would be trained with now.

    Returns:
        What changed -> ids of the cells; cells of which nothing is known are absent.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for cell, before, now in known:
        if before is not None and (what := before.changed(now)):
            found.setdefault(what, []).append(cell)
    return found
