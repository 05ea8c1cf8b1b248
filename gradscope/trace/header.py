"""The structure of a network read back from the header of a trace's file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gradscope.trace.structure import (
    Block,
    LossSide,
    ModuleInfo,
    ParameterGroup,
    Softmax,
    Structure,
    Summary,
)

if TYPE_CHECKING:
    pass


def structure_of(raw: dict[str, Any]) -> Structure:
    """The structure from JSON types; an older file lacks the newer keys."""
    known = {**raw, "loss": _loss_side(raw.get("loss"))}
    for name, kind in _PARTS.items():
        known[name] = tuple(_part(kind, each) for each in raw.get(name, ()))
    for name in ("unused", "frozen", "aside", "unread", "handed_on", "strangers", "moved"):
        known[name] = tuple(raw.get(name, ()))
    return Structure(**known)


_PARTS: dict[str, type[ModuleInfo | Block | ParameterGroup | Summary]] = {
    "modules": ModuleInfo,
    "blocks": Block,
    "groups": ParameterGroup,
    "inputs": Summary,
}


def _loss_side(raw: dict[str, Any] | None) -> LossSide | None:
    if raw is None:
        return None
    side: LossSide = _part(LossSide, raw)
    return dataclasses.replace(side, targets=tuple(_part(Summary, t) for t in raw["targets"]))


def _part(kind: type[Any], raw: dict[str, Any]) -> Any:
    """A frozen record from JSON types, where tuples became lists."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    if isinstance(known.get("softmax"), dict):
        known["softmax"] = _part(Softmax, known["softmax"])
    return kind(**known)
