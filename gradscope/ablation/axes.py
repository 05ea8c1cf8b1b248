"""Axes: which settings a matrix varies, and the points that it unfolds into."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from gradscope.ablation.document import Document, KeyPath, shown
from gradscope.ablation.settings import SECTIONS, GridConfig
from gradscope.errors import nearest

Point = dict[str, tuple[Any, KeyPath]]
"""Name of an axis -> its value at one point, and where that was written."""

Origin = dict[tuple[str, ...], KeyPath]
"""Setting -> where in the document the matrix or an inclusion gave it."""


@dataclass(frozen=True)
class Axis:
    """One factor of the matrix."""

    key: str
    """As it is written in the grid."""
    name: str
    """As it is shown: the last part of the path where that is unambiguous."""
    path: tuple[str, ...]
    """Which setting it varies: ``("train", "lr")``."""
    values: tuple[Any, ...]
    labels: tuple[Any, ...]
    """What stands for each value in tables: scalars themselves, a label or name for sections."""

    def meant(self, value: Any) -> Any:
        """The section that a label stands for; any other value itself."""
        sections = zip(self.labels, self.values, strict=True)
        return next((s for label, s in sections if isinstance(s, dict) and label == value), value)


def axes_of(
    config: GridConfig, document: Document, arguments: Iterable[str] | None
) -> tuple[Axis, ...]:
    """The axes of a grid.

    Args:
        config: the grid.
        document: knows the lines.
        arguments: that its models take; None: not known yet, an unknown bare name may be one.

    Raises:
        ConfigError: an axis varies nothing, or makes no sense.
    """
    axes: list[Axis] = []
    known = _settings(config, arguments or ())
    for key, values in config.matrix.items():
        guess = arguments is None and config.model is not None
        path = _resolve(key, known, document, guess=guess)
        if not values:
            raise document.error(("matrix", key), f"axis '{key}' has no values; give at least one")
        for other in axes:
            if other.path == path:
                raise document.error(
                    ("matrix", key),
                    f"axis '{key}' varies {'.'.join(path)}, as '{other.key}' does; remove one",
                )
        labels = tuple(label(value) for value in values)
        if len(set(map(repr, labels))) < len(labels):
            raise document.error(
                ("matrix", key), f"axis '{key}' names a value twice; remove one, or label them"
            )
        axes.append(Axis(key, path[-1], path, tuple(values), labels))
    names = [axis.name for axis in axes]
    return tuple(
        axis if names.count(axis.name) == 1 else Axis(**{**vars(axis), "name": ".".join(axis.path)})
        for axis in axes
    )


def label(value: Any) -> Any:
    """What stands for a value in tables."""
    if is_scalar(value):
        return value
    if isinstance(value, dict) and is_scalar(
        value.get("label", value.get("name", value.get("source")))
    ):
        named = value.get("label", value.get("name", value.get("source")))
        if named is not None:
            return named
    return json.dumps(value, default=str)


def is_scalar(value: Any) -> bool:
    """Whether YAML writes it in one word."""
    return value is None or isinstance(value, str | int | float | bool)


def _resolve(
    key: str, known: list[tuple[str, ...]], document: Document, *, guess: bool
) -> tuple[str, ...]:
    """The setting that an axis varies: a dotted path, or the only setting of that last name."""
    place = ("matrix", key)
    path = tuple(key.split("."))
    if path[0] == "args":
        path = ("train", *path)
    if path in known or (path[0] in SECTIONS and _is_open(path, known)):
        return path
    if key in ("seed", "seeds"):
        raise document.error(place, "seeds are no axis; list them under the key 'seeds'")
    found = [p for p in known if p[-1] == key]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(".".join(p) for p in found)
        raise document.error(place, f"axis '{key}' is ambiguous; write one of: {choices}")
    if guess and len(path) == 1:
        return ("model", "args", key)
    if path[:2] == ("train", "args"):
        names = [".".join(p) for p in known if p[:2] == path[:2] and len(p) > 2]
        valid = nearest(".".join(path), names) if names else "it has none"
        raise document.error(
            place, f"unknown axis '{key}'; give train.args the usual value first; {valid}"
        )
    names = [".".join(p) for p in known] if "." in key else [p[-1] for p in known if len(p) > 1]
    raise document.error(place, f"unknown axis '{key}'; {nearest(key, names)}")


def _settings(config: GridConfig, arguments: Iterable[str]) -> list[tuple[str, ...]]:
    """Every setting that an axis may vary, the given arguments of models included."""
    own = bool(config.train.get("function"))
    paths: list[tuple[str, ...]] = []
    for section, kind in SECTIONS.items():
        if own and section in ("model", "data") and getattr(config, section) is None:
            continue
        paths.append((section,))
        if own and section == "train":
            paths.append(("train", "function"))
        else:
            paths += [(section, n) for n in kind.model_fields if n not in ("args", "function")]
    named = {*arguments, *((config.model or {}).get("args") or {})}
    paths += [("model", "args", name) for name in sorted(named)]
    for section in ("data", "train"):
        args = (getattr(config, section) or {}).get("args")
        paths += [(section, "args", name) for name in (args if isinstance(args, dict) else ())]
    return paths


def _is_open(path: tuple[str, ...], known: list[tuple[str, ...]]) -> bool:
    """Paths below free-form settings, which only the factory itself can check."""
    if path[:2] == ("train", "args"):
        return len(path) > 3 and path[:3] in known
    return len(path) > 2 and path[:2] in (("model", "args"), ("data", "args"), ("model", "init"))


def points_of(config: GridConfig, axes: tuple[Axis, ...], document: Document) -> list[Point]:
    """The value of each axis at every point that is not excluded, then the included ones."""
    by_name = {n: axis for axis in axes for n in (axis.key, axis.name, ".".join(axis.path))}

    def known(entry: dict[str, Any], place: KeyPath) -> dict[str, Any]:
        for name in entry:
            if name not in by_name:
                valid = nearest(name, [a.key for a in axes])
                raise document.error((*place, name), f"unknown axis '{name}'; {valid}")
        return {by_name[name].name: value for name, value in entry.items()}

    excluded = [known(e, ("exclude", i)) for i, e in enumerate(config.exclude)]
    used = [False] * len(excluded)
    points: list[Point] = []
    for choice in itertools.product(*(range(len(a.values)) for a in axes)):
        labels = {a.name: a.labels[i] for a, i in zip(axes, choice, strict=True)}
        hits = [all(labels[n] == v for n, v in e.items()) for e in excluded]
        used = [was or hit for was, hit in zip(used, hits, strict=True)]
        if not any(hits):
            points.append(
                {
                    a.name: (a.values[i], ("matrix", a.key, i))
                    for a, i in zip(axes, choice, strict=True)
                }
            )
    for i, was_used in enumerate(used):
        if not was_used:
            raise document.error(
                ("exclude", i), "this exclusion matches no cell; its values must be of the matrix"
            )
    for i, entry in enumerate(config.include):
        known(entry, ("include", i))
        axis_of = {name: by_name[name] for name in entry}
        points.append(
            {a.name: (a.meant(entry[name]), ("include", i, name)) for name, a in axis_of.items()}
        )
    return points


def validated(
    kind: type[BaseModel],
    data: Any,
    path: KeyPath,
    document: Document,
    origin: Origin | None = None,
) -> Any:
    """Validate settings; the first error becomes one line that names the place and the mend.

    Args:
        kind: the pydantic model.
        data: what was written.
        path: where the settings belong, for the name of the key in the message.
        document: knows the lines.
        origin: which of the settings were written elsewhere: in the matrix.

    Raises:
        ConfigError: something in it is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        location = tuple(p for p in first["loc"] if isinstance(p, str | int))
        key = ".".join(str(p) for p in (*path, *location))
        place = written((*path, *location), origin or {})
        if first["type"] == "extra_forbidden":
            valid = nearest(str(location[-1]), _fields(kind, location[:-1]))
            raise document.error(place, f"unknown key '{key}'; {valid}") from error
        if first["type"] == "missing":
            raise document.error(place, f"key '{key}' is missing; add it") from error
        message = first["msg"].removeprefix("Value error, ")
        message = re.sub(r" or instance of \w+", "", message).replace("dictionary", "mapping")
        given = f", got {shown(first['input'])!r}" if is_scalar(first["input"]) else ""
        raise document.error(place, f"{key}: {message[:1].lower()}{message[1:]}{given}") from error


def written(path: KeyPath, origin: Origin) -> KeyPath:
    """Where a setting was written: in the innermost axis that reaches it, else at its own place."""
    for length in range(len(path), 0, -1):
        place = origin.get(tuple(map(str, path[:length])))
        if place is not None:
            return (*place, *path[length:])
    return path


def _fields(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for name in path:
        info = kind.model_fields.get(str(name))
        inner = info.annotation if info else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
