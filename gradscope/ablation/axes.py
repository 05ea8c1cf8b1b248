"""Axes: which settings a matrix varies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradscope.ablation.document import Document
from gradscope.ablation.settings import SECTIONS, GridConfig
from gradscope.errors import nearest


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
