"""compare(): what moved between two profiles, and whether rounding or chance explains it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradscope.testing.profile import DRAWN, MEASURES, OUTSIDE, Layer, Profile

FLOOR = 1e-4
"""Decades, or shares of units, by which a number may always move. One unit of a ReLU or of a
max-pool that tips over under rounding moves the numbers of a small network by as much as 3e-5, on
other instructions, thread counts and versions of torch; the noise need not tip that very one."""

WEIGHT_FLOOR = 1e-6
"""The same for what is drawn: no network amplifies the rounding of a generator, about 1e-7."""

FACTOR = 4.0
"""Rounding may do this many times what noise did: twice because two machines may err in opposite
directions, and twice again because one draw of the noise is not the largest."""

FALSE_ALARM = 1e-3
"""Chance that the same network with other random numbers is said to have moved beyond chance."""

POWER = 0.9
"""Share of real changes of the size named in the message that are said to be beyond chance."""

ROWS = 20
"""Layers that a message shows."""

Key = tuple[str, str]
"""Name of a layer, and a measure."""


@dataclass(frozen=True)
class Move:
    """How far one number went, in the seed in which it went furthest."""

    before: float
    after: float

    @property
    def by(self) -> float:
        """Decades, or share of units; infinite where one of them is zero or not finite."""
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        by = self.after - self.before
        return math.inf if math.isnan(by) else by

    def __str__(self) -> str:
        if math.isfinite(self.by):
            return f"{self.by:+.2g}"
        names = {True: "not finite", False: "zero"}
        if not math.isfinite(self.after):
            return names[math.isnan(self.after)]
        return f"was {names[math.isnan(self.before)]}"


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
    structure = [*_structure(stored, now)]
    moves = _moves(stored, now)
    if any(abs(move.by) > _floor(measure) for (_, measure), move in moves.items()):
        allowed = _rounding(now, shaken())
        moves = {key: m for key, m in moves.items() if abs(m.by) > allowed.get(key, math.inf)}
    else:
        moves = {}
    if not structure and not moves:
        return ""
    redrawn, other_draw = _redrawn(stored, now)
    lines = [_draw(stored, now, redrawn, other_draw), *structure, *_types(stored, now)]
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


def tolerance(key: Key, stored: Profile, now: Profile) -> tuple[float, float]:
    """By how much two means over seeds of one number may differ by chance, and what is seen.

    The spread between seeds is the largest of that seen in this number, that seen on average in
    its measure, and that which the widths predict. Means over n and m seeds differ by more than
    z * spread * sqrt(1/n + 1/m) with a probability of `FALSE_ALARM` over all numbers (Bonferroni).

    Returns:
        That difference, and the real one that exceeds it with probability `POWER`.
    """
    name, measure = key
    spreads = [0.0 if measure in (*DRAWN, "dead") else max(stored.width_std, now.width_std)]
    for profile in (stored, now):
        spreads += [_std(profile.layers[name].numbers[measure]), _mean_std(profile, measure)]
    error = max(spreads) * math.sqrt(1 / stored.seeds + 1 / now.seeds)
    chance = FALSE_ALARM / (2 * sum(len(layer.numbers) for layer in now.layers.values()))
    normal = statistics.NormalDist()
    allowed = _floor(measure) + normal.inv_cdf(1 - chance) * error
    return allowed, allowed + normal.inv_cdf(POWER) * error


def _moves(stored: Profile, now: Profile) -> dict[Key, Move]:
    """The largest move of each number that both have, over the seeds that both have.

    Without the draw: what it does shows in the others.
    """
    moves = {}
    for name, layer in now.layers.items():
        before = stored.layers[name].numbers if name in stored.layers else {}
        for measure, values in layer.numbers.items():
            if measure == "draw" or measure not in before:
                continue
            pairs = zip(before[measure], values, strict=False)
            moves[name, measure] = max((Move(*pair) for pair in pairs), key=lambda m: abs(m.by))
    return moves


def _rounding(now: Profile, shaken: Profile) -> dict[Key, float]:
    """What rounding may do to each number: what noise did at most to any number of its measure.

    A number that noise makes or keeps from being zero is left out: it is rounding itself.
    """
    moves = {key: abs(move.by) for key, move in _moves(now, shaken).items()}
    worst = dict.fromkeys(MEASURES, 0.0)
    for (_, measure), by in moves.items():
        if math.isfinite(by) and measure not in DRAWN:
            worst[measure] = max(worst[measure], by)
    return {
        key: max(_floor(key[1]), FACTOR * worst[key[1]])
        for key, by in moves.items()
        if math.isfinite(by)
    }


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
        return f"gradient profile: other random numbers than stored{versions} in {_list(redrawn)}"
    but = f" but in {_list(redrawn)}" if redrawn else ""
    seeds = f"{now.seeds} seed{'s' if now.seeds > 1 else ''}"
    return f"gradient profile: same random numbers as stored{but} ({seeds}), another outcome"


def _structure(stored: Profile, now: Profile) -> Iterable[str]:
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
            yield f"new {what}: {_list(come)}"
        if gone := [name for name in old if name not in new]:
            yield f"no longer {what}: {_list(gone)}"


def _types(stored: Profile, now: Profile) -> list[str]:
    """Layers of another class; none moves a number by that alone."""
    pairs = (
        (name, stored.layers[name], layer)
        for name, layer in now.layers.items()
        if name in stored.layers
    )
    return _short([f"'{n}' is a {b.type}, was a {a.type}" for n, a, b in pairs if a.type != b.type])


def _what(layer: Layer) -> str:
    return f"({layer.parameters or 'no parameters'}; has {', '.join(layer.numbers)})"


def _by_chance(stored: Profile, now: Profile, moves: Mapping[Key, Move]) -> list[str]:
    """What moved on average by more than chance, or how much within chance."""
    means = {key: _mean_move(key, stored, now) for key in moves}
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


def _mean_move(key: Key, stored: Profile, now: Profile) -> Move:
    name, measure = key
    means = [statistics.fmean(p.layers[name].numbers[measure]) for p in (stored, now)]
    return Move(*means)


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


def _floor(measure: str) -> float:
    return WEIGHT_FLOOR if measure in DRAWN else FLOOR


def _std(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.stdev(known) if len(known) > 1 else 0.0


def _mean_std(profile: Profile, measure: str) -> float:
    """Root mean square over the layers."""
    found = [la.numbers[measure] for la in profile.layers.values() if measure in la.numbers]
    return math.sqrt(statistics.fmean(_std(values) ** 2 for values in found)) if found else 0.0


def _short(lines: list[str]) -> list[str]:
    return [*lines[:5], f"and {len(lines) - 5} more like these"] if len(lines) > 5 else lines


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
