"""Autograd nodes: their names, and what they came from."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any


def name_of(node: Any) -> str:
    """Name of a node, as ``AddmmBackward0``."""
    return str(node.name()).rpartition("::")[2]


def ancestors(node: Any, ends: Container[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """A node and those it came from, first computed first; leaves are left out.

    Args:
        node: where to begin; None gives nothing.
        ends: nodes that are given, and what is behind them not.

    Yields:
        Each node once, with those that it was computed from.
    """
    done: set[Any] = set()
    stack = [(node, False)] if node is not None else []
    known: dict[Any, list[Any]] = {}
    while stack:  # no recursion: graphs are deep
        node, expanded = stack.pop()
        if expanded:
            yield node, known[node]
            continue
        if node in done:
            continue
        done.add(node)
        behind = node not in ends
        inputs = [n for n, _ in node.next_functions if n is not None and not hasattr(n, "variable")]
        known[node] = inputs if behind else []
        stack.append((node, True))
        stack.extend((n, False) for n in known[node] if n not in done)
