"""Points: what a matrix unfolds into, without what is excluded, with what is included."""

from __future__ import annotations

import itertools
from typing import Any

from gradscope.ablation.axes import Axis
from gradscope.ablation.document import Document, KeyPath
from gradscope.ablation.settings import GridConfig
from gradscope.errors import nearest

Point = dict[str, tuple[Any, KeyPath]]
"""Name of an axis -> its value at one point, and where that was written."""


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
