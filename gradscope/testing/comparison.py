"""compare(): what moved between two profiles, and whether rounding or chance explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from gradscope.testing.moves import (
    POWER,
    WEIGHT_FLOOR,
    Key,
    Move,
    floor_of,
    mean_move,
    moves_of,
    rounding,
    tolerance,
)
from gradscope.testing.profile import MEASURES, OUTSIDE, Profile
from gradscope.testing.structure_changes import listed, structure_changes, type_changes

ROWS = 20
"""Layers that a message shows."""


def compare(stored: Profile, now: Profile, shaken: Callable[[], Profile]) -> str:
    """Tell how a network differs from what was stored of it.

    The same seeds draw the same weights, so numbers are compared seed by seed: they may move by
    `FACTOR` times what noise of the size of rounding moves them in this network, and by `FLOOR`.
    Where the draw itself is another, means over the seeds are compared as well, to tell what
    chance would do.

    Args:
        stored: as it was.
        now: as it is.
        shaken: measures the network as it is, with noise; called only where something moved.

    Returns:
        What moved, by how much and what that means; empty where nothing did.
    """
    structure = [*structure_changes(stored, now)]
    moves = moves_of(stored, now)
    if any(abs(move.by) > floor_of(measure) for (_, measure), move in moves.items()):
        allowed = rounding(now, shaken())
        moves = {key: m for key, m in moves.items() if abs(m.by) > allowed.get(key, math.inf)}
    else:
        moves = {}
    if not structure and not moves:
        return ""
    redrawn, other_draw = _redrawn(stored, now)
    lines = [_draw(stored, now, redrawn, other_draw), *structure, *type_changes(stored, now)]
    if other_draw and set(redrawn) <= set(OUTSIDE) and not structure:
        lines.append(
            "mend: draw them in a function, as in lambda: torch.randn(8, 3, 32, 32), which is "
            "called with the seed set"
        )
    if moves and other_draw:
        lines += _by_chance(stored, now, moves)
    elif moves:
        lines += [_headline(moves, "beyond rounding"), *_table(now, moves)]
    return "\n".join(lines)


def _redrawn(stored: Profile, now: Profile) -> tuple[list[str], bool]:
    """Layers of the same shapes with other weights, and whether that is another draw of all.

    It is where the inputs, or most layers that are drawn at random, are others.
    """
    found, drawn = [], 0
    for name, layer in now.layers.items():
        old = stored.layers.get(name)
        if old is None or old.parameters != layer.parameters:
            continue
        pairs = zip(old.numbers.get("draw", ()), layer.numbers.get("draw", ()), strict=False)
        moves = [Move(*pair) for pair in pairs]
        # Numbers of one magnitude, as those of a fresh norm layer, have a ratio of exactly 1.
        drawn += any(
            abs(value) > WEIGHT_FLOOR for move in moves for value in (move.before, move.after)
        )
        if any(abs(move.by) > WEIGHT_FLOOR for move in moves):
            found.append(name)
    return found, any(name in OUTSIDE for name in found) or 2 * len(found) > drawn


def _draw(stored: Profile, now: Profile, redrawn: Sequence[str], other: bool) -> str:
    """Whether seeds can be compared one by one."""
    if other:
        versions = f" (torch {stored.torch}, now {now.torch})" if stored.torch != now.torch else ""
        return f"gradient profile: other random numbers than stored{versions} in {listed(redrawn)}"
    but = f" but in {listed(redrawn)}" if redrawn else ""
    seeds = f"{now.seeds} seed{'s' if now.seeds > 1 else ''}"
    return f"gradient profile: same random numbers as stored{but} ({seeds}), another outcome"


def _by_chance(stored: Profile, now: Profile, moves: Mapping[Key, Move]) -> list[str]:
    """What moved on average by more than chance, or how much within chance."""
    means = {key: mean_move(key, stored, now) for key in moves}
    limits = {key: tolerance(key, stored, now) for key in moves}
    beyond = {key: move for key, move in means.items() if abs(move.by) > limits[key][0]}
    if beyond:
        return [_headline(beyond, "beyond chance, on average over seeds"), *_table(now, beyond)]
    key = max(means, key=lambda key: abs(means[key].by) / limits[key][0])
    by, (allowed, seen), (name, measure) = abs(means[key].by), limits[key], key
    return [
        f"moved by {by:.2g} {_unit(measure)}, within chance: accept or not?",
        f"({measure} of '{name}', the furthest for its spread over {now.seeds} seeds)",
        f"(chance does up to {allowed:.2g}; {POWER:.0%} of real moves by {seen:.2g} would show)",
    ]


def _headline(moves: Mapping[Key, Move], how: str) -> str:
    (name, measure), move = max(moves.items(), key=lambda item: abs(item[1].by))
    layers = len({name for name, _ in moves})
    by = f"{measure} {move}" + (f" {_unit(measure)}" if math.isfinite(move.by) else "")
    return f"{layers} layer{'s' if layers > 1 else ''} moved {how}, most '{name}': {by}"


def _table(now: Profile, moves: Mapping[Key, Move]) -> list[str]:
    """The layers that moved most, in execution order, and how far each of their numbers went."""
    sizes: dict[str, float] = {}
    for (name, _), move in moves.items():
        sizes[name] = max(sizes.get(name, 0.0), abs(move.by))
    shown = sorted(sizes, key=lambda name: -sizes[name])[:ROWS]
    measures = [measure for measure in MEASURES if any(m == measure for _, m in moves)]
    rows = [["layer", *measures]]
    for name in now.layers:
        if name in shown:
            cells = (moves.get((name, measure), "") for measure in measures)
            rows.append([name, *map(str, cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, f"and {len(sizes) - ROWS} more layers"] if len(sizes) > ROWS else lines


def _unit(measure: str) -> str:
    return "of its units" if measure == "dead" else "decades"
