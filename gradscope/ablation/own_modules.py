"""Where a module lies, without importing it, and whether it is the user's own."""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path


def with_packages(name: str) -> Iterator[str]:
    """A module, and the packages that it is imported with."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module would be found, without importing the packages above it."""
    path: list[str] | None = None
    spec = None
    if str(Path.cwd()) not in sys.path:  # where `load_factory` looks too
        sys.path.insert(0, str(Path.cwd()))
    parts = name.split(".")
    for i in range(len(parts)):
        spec = _found(".".join(parts[: i + 1]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _found(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find(name, path) if find else None
        if spec is not None:
            return spec
    return None


@cache
def _installed() -> tuple[Path, ...]:
    """Folders whose modules are nobody's own."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [sysconfig.get_path(name) for name in names]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    places += [str(Path(__file__).resolve().parents[1])]  # gradscope itself, wherever it lies
    return tuple(Path(place).resolve() for place in places)


def is_own(path: Path) -> bool:
    """Whether a file lies neither in the standard library nor among installed packages."""
    path = path.resolve()
    inside = any(path.is_relative_to(place) for place in _installed())
    return path.is_file() and not inside and "site-packages" not in path.parts
