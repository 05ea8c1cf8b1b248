"""Settings validated: the first error becomes one line that names the place and the mend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gradscope.ablation.axes import is_scalar
from gradscope.ablation.document import Document, KeyPath, shown
from gradscope.errors import nearest

Origin = dict[tuple[str, ...], KeyPath]
"""Setting -> where in the document the matrix or an inclusion gave it."""


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
    for inner, value in _truths(kind, data):
        where = (*path, *inner)
        told = f"{'.'.join(map(str, where))}: give a number, got {shown(value)!r}"
        raise document.error(written(where, origin or {}), told)
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


def _truths(kind: type[BaseModel], data: Any) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Where true or false stands for a number, which pydantic would take for 1 or 0."""
    for name, value in data.items() if isinstance(data, Mapping) else ():
        info = kind.model_fields.get(str(name))
        kinds = set(_within(info.annotation)) if info else set()
        each = value if isinstance(value, list | tuple) else (value,)
        if kinds & {int, float}:
            yield from (((name,), v) for v in each if isinstance(v, bool))
        for inner in kinds:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from (((name, *where), v) for where, v in _truths(inner, value))


def _within(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _within(part)


def _fields(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for name in path:
        info = kind.model_fields.get(str(name))
        inner = info.annotation if info else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
