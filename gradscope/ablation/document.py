"""A grid's YAML as plain data that knows on which line each key stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradscope.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of the document: ``("train", "lr")``."""

_REPLACED = ("float", "timestamp")
_MOST_KEYS = 100_000
"""Aliases of aliases unfold a short file into billions of settings; nobody writes so many."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number and a date is text, as in YAML 1.2."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in the base class; values that Python refuses get their line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # an integer of thousands of digits
            reason = str(error).partition(";")[0]
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark) from error


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in _REPLACED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)
             |[-+]?(?:[0-9][0-9_]*)\.[0-9_]*
             |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
             |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


@dataclass
class Document:
    """Plain data, and where each piece of it was written."""

    data: dict[str, Any]
    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each key, from 1."""
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    """What was set on the command line instead -> the option as it was given."""

    def where(self, path: KeyPath) -> str:
        """``grid.yaml:7``, or the option that set it, for the nearest key that is known."""
        below = [option for key, option in self.overridden.items() if key[: len(path)] == path]
        if path and below and path not in self.lines:  # a section that only options made
            return below[0]
        for length in range(len(path), -1, -1):
            if path[:length] in self.overridden:
                return self.overridden[path[:length]]
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return self.file

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """An error that names the place of a key."""
        return ConfigError(f"{self.where(path)}: {message}")

    def override(self, option: str) -> None:
        """Apply one ``key.path=value`` of the command line; the value is YAML.

        Raises:
            ConfigError: the option has no ``=``, its value is no YAML, or a key on its way is no
                mapping.
        """
        key, equals, text = option.partition("=")
        shown = f"--set {option}"
        if not equals or not key.strip():
            raise ConfigError(f"{shown}: not of the form key.path=value, as in train.epochs=1")
        try:
            _, value = _parsed(text, Document({}, shown))
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{shown}: the value is no YAML ({_reason(error)})") from error
        keys = key.strip().split(".")
        if keys[0] == "matrix" and len(keys) > 1:  # an axis may itself be a dotted path
            keys = ["matrix", ".".join(keys[1:])]
        place = self.data
        for name in keys[:-1]:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{shown}: '{name}' is a {_kind(inner)}, not a section")
            place = inner
        place[keys[-1]] = value
        here = tuple(keys)
        self.lines = {k: line for k, line in self.lines.items() if k[: len(here)] != here}
        self.overridden[here] = shown


def read(path: Path, options: Sequence[str] = ()) -> Document:
    """Read one YAML mapping, safely.

    Args:
        path: the file.
        options: ``key.path=value`` of the command line, applied in order.

    Raises:
        ConfigError: the file is missing, is no YAML, is no mapping, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the path of a grid in YAML") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}); give a YAML file") from error
    try:
        document = Document({}, str(path))
        node, data = _parsed(text, document)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {_reason(error)}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: a grid is a mapping with keys such as name, model and matrix")
    document.data = data
    for option in options:
        document.override(option)
    return document


def _parsed(text: str, document: Document) -> tuple[yaml.Node | None, Any]:
    """The outermost node and what it holds; the lines of its keys go into the document."""
    node = yaml.compose(text, _Loader)
    if node is None:
        return None, None
    _note_lines(node, (), document)
    return node, _Loader("").construct_document(node)


def _note_lines(node: yaml.Node, path: KeyPath, document: Document) -> None:
    if len(document.lines) > _MOST_KEYS:
        raise ConfigError(
            f"{document.file}: holds more than {_MOST_KEYS} settings; write fewer, "
            "or fewer aliases of aliases"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in document.lines:
                raise ConfigError(
                    f"{document.file}:{line}: key '{key.value}' stands here a second time "
                    f"(first in line {document.lines[here]}); remove one"
                )
            document.lines[here] = line
            _note_lines(value, here, document)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            document.lines[*path, i] = value.start_mark.line + 1
            _note_lines(value, (*path, i), document)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or an alias holds itself"
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(str(problem).split())


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}.get(
        type(value), type(value).__name__
    )


def merged(base: dict[str, Any], path: Iterable[str], value: Any) -> dict[str, Any]:
    """A copy of nested settings with one value at a path replaced; a mapping replaces a section."""
    first, *rest = path
    inner = base.get(first)
    if rest:
        value = merged(inner if isinstance(inner, dict) else {}, rest, value)
    return {**base, first: value}


def shown(value: Any) -> str:
    """A value as a person writes it in a grid: short floats, truth values in lower case."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return re.sub(r"e([-+])0*", r"e\1", f"{value:.6g}").replace("e+", "e")
    return "none" if value is None else str(value)
