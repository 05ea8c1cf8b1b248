"""What a cell is trained with beside its configuration: the user's own code, and the data."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import site
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

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


def code_of(module: str) -> dict[str, str]:
    """Digests of the files of a module and of all that it imports of the user's own project.

    Own is what lies neither in the standard library nor among installed packages. Imports are read
    from the source, those inside functions too; what is imported by a computed name is not seen.
    Comments and blank lines do not count.

    Args:
        module: dotted name; none of it is imported.

    Returns:
        File, as its module is named (``nets/blocks.py``) -> digest, hex.
    """
    found: dict[str, str] = {}
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = _spec(name)
        if spec is None or not spec.has_location or not _is_own(Path(str(spec.origin))):
            continue
        path = Path(str(spec.origin))
        source = path.read_bytes()
        is_package = spec.submodule_search_locations is not None
        stem = name.replace(".", "/") + ("/__init__" if is_package else "")
        found[stem + path.suffix] = _digest(_code(source) if path.suffix == ".py" else source)
        if path.suffix == ".py":
            package = name if is_package else name.rpartition(".")[0]
            waiting += [part for target in _imported(source, package) for part in _parts(target)]
    return found


def _parts(name: str) -> Iterator[str]:
    """A module, and the packages that it is imported with."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _spec(name: str) -> ModuleSpec | None:
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


def _is_own(path: Path) -> bool:
    path = path.resolve()
    inside = any(path.is_relative_to(place) for place in _installed())
    return path.is_file() and not inside and "site-packages" not in path.parts


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Names of modules that a source imports, or might: ``from a import b`` may mean ``a.b``."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # its import says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:  # beyond the top
                    continue
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _code(source: bytes) -> bytes:
    """A Python source without comments and blank lines."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        lines = source.decode(encoding).splitlines(keepends=True)
        tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return source
    for token in tokens:
        row, column = token.start
        before = token.line[:column].strip()
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n" if before else ""
        elif token.type == tokenize.NL and not before:
            lines[row - 1] = ""
    return "".join(lines).encode()


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
        return _digest(file.read(_MOST_BYTES), path.stat().st_size.to_bytes(8, "little"))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


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
