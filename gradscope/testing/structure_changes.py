"""Layers and parameters that came, went, or changed between two profiles."""

from __future__ import annotations

from collections.abc import Iterable

from gradscope.testing.profile import Layer, Profile


def structure_changes(stored: Profile, now: Profile) -> Iterable[str]:
    """Layers and parameters that came, went, or changed their part."""
    before, after = stored.layers, now.layers
    changed = [
        f"'{name}' is {_what(after[name])}, was {_what(before[name])}"
        for name in before
        if name in after
        and (
            before[name].parameters != after[name].parameters
            or before[name].numbers.keys() != after[name].numbers.keys()
        )
    ]
    yield from _short(changed)
    tied = {f"{a} = {b}" for a, b in (stored.shared or {}).items()}
    tied_now = {f"{a} = {b}" for a, b in (now.shared or {}).items()}
    for what, old, new in (
        ("layers", before, after),
        ("frozen parameters", stored.frozen, now.frozen),
        ("parameters without a gradient", stored.without_gradient, now.without_gradient),
        ("shared parameters", tied, tied_now),
    ):
        if come := [name for name in new if name not in old]:
            yield f"new {what}: {listed(come)}"
        if gone := [name for name in old if name not in new]:
            yield f"no longer {what}: {listed(gone)}"


def type_changes(stored: Profile, now: Profile) -> list[str]:
    """Layers of another class; none moves a number by that alone."""
    pairs = (
        (name, stored.layers[name], layer)
        for name, layer in now.layers.items()
        if name in stored.layers
    )
    return _short([f"'{n}' is a {b.type}, was a {a.type}" for n, a, b in pairs if a.type != b.type])


def _what(layer: Layer) -> str:
    return f"({layer.parameters or 'no parameters'}; has {', '.join(layer.numbers)})"


def _short(lines: list[str]) -> list[str]:
    return [*lines[:5], f"and {len(lines) - 5} more like these"] if len(lines) > 5 else lines


def listed(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
