"""Findings on trends: gradients and activations that shrink or grow from block to block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, known_steps
from gradscope.diagnosis.flow import GradientFlow
from gradscope.diagnosis.robust import location
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict


@dataclass(frozen=True)
class Stretch:
    """The contiguous run of blocks over which a quantity changes most in one direction."""

    start: int
    stop: int
    """Index of its first and of its last block."""
    decades: float
    """How much it changes in all, in the direction asked for."""
    slope: float
    low: float
    high: float
    """Robust decades per block in that direction, with its 95 % interval."""
    largest: float
    """The largest single step."""

    @property
    def robust(self) -> float:
        """Decades that the robust centre makes over the stretch."""
        return self.slope * (self.stop - self.start)

    def matters(self, limit: float) -> bool:
        """Whether the change reaches a limit, and not by a few odd blocks alone."""
        return self.decades >= limit and self.robust >= limits.ROBUST_SHARE * limit

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes a factor of one."""
        return self.low > 0


def longest(steps: Sequence[float], sign: int) -> Stretch:
    """Find the stretch with the largest sum (Kadane's algorithm).

    Args:
        steps: decades from each block to the next.
        sign: +1 for growth, -1 for decay.

    Returns:
        The stretch; empty, with zeros, when nothing goes in that direction.
    """
    best, best_at, run, start = 0.0, (0, 0), 0.0, 0
    for i, step in enumerate(steps):
        if run <= 0:
            run, start = 0.0, i
        run += sign * step
        if run > best:
            best, best_at = run, (start, i + 1)
    inside = [sign * step for step in steps[best_at[0] : best_at[1]]]
    slope, low, high = location(inside) if inside else (0.0, -math.inf, math.inf)
    return Stretch(*best_at, best, slope, low, high, max(inside, default=0.0))


def growth_and_decay(case: Case) -> Iterator[Finding]:
    """Vanishing, exploding (forward and backward), masked decay, short memory."""
    if not case.flow.blocks and not case.flow.silent:
        yield from _weights_only(case)
        return
    over_time = set()
    for module, loop in case.loops.items():
        over_time |= set(loop.blocks)
        yield from _over_time(case, module, loop)
    if 2 * len(over_time & set(case.flow.blocks)) < len(case.flow.blocks):
        yield from _over_depth(case)


def _over_depth(case: Case) -> Iterator[Finding]:
    flow = case.flow
    backward = [math.log10(chi) for chi in flow.chi]  # from the output to the input
    decay, growth = longest(backward, -1), longest(backward, +1)
    lost = decay.decades >= limits.MILD and _is_lost(flow, decay)
    if lost and decay.matters(limits.VANISHING) and decay.is_certain:
        yield _vanishing(case, decay)
        yield from _masked(case, decay)
    elif lost:
        yield from _unsettled(case, decay, "decay", limits.VANISHING)
    forward = longest(known_steps(flow.log10_activation), +1)
    for name, stretch in (("backward", growth), ("forward", forward)):
        limit = _growth_limit(case, stretch)
        chain = name == "backward" and _norm_chain(case, stretch)
        if chain or (stretch.matters(limit) and stretch.is_certain):
            yield _exploding(case, stretch, name)
        elif stretch.decades >= limits.MILD:
            yield from _unsettled(case, stretch, f"{name} growth", limit)


def _is_lost(flow: GradientFlow, decay: Stretch) -> bool:
    """Whether the decay leaves less than the loss gave, and does not only undo a growth before."""
    return flow.log10_grad[-1] - flow.log10_grad[decay.start] >= limits.MILD


def _growth_limit(case: Case, stretch: Stretch) -> float:
    """How much growth matters: less where nothing bounds it."""
    names = case.flow.blocks[stretch.start : stretch.stop + 1]
    normalised = sum(case.norms_in(name, on_trunk=False) > 0 for name in names)
    return limits.EXPLODING_NORMALISED if 2 * normalised >= len(names) else limits.EXPLODING


def _norm_chain(case: Case, stretch: Stretch) -> bool:
    """Whether the growth is the one that theory gives a chain of normalised layers.

    Each layer adds `NORM_FACTOR`; the number of layers in a row that no path leads around is known
    exactly, so that the total is known better than the stretch alone would tell.
    """
    names = case.flow.blocks[stretch.start : stretch.stop + 1]
    longest_run = run = 0
    for name in names:
        run = 0 if case.is_bypassed(name) else run + case.norms_in(name, on_trunk=True)
        longest_run = max(longest_run, run)
    expected = longest_run * limits.NORM_FACTOR
    return expected >= limits.EXPLODING and stretch.is_certain and stretch.decades >= expected / 2


def _where(flow: GradientFlow, stretch: Stretch) -> str:
    return f"{flow.blocks[stretch.start]} ... {flow.blocks[stretch.stop]}"


def _numbers(stretch: Stretch, sign: int, unit: str = "block") -> dict[str, Evidence]:
    ends = sorted((sign * stretch.low, sign * stretch.high))
    return {
        "factor": Evidence(10 ** (sign * stretch.slope), f"per {unit}"),
        "slope": Evidence(sign * stretch.slope, f"decades per {unit}"),
        "slope_low": Evidence(ends[0], f"decades per {unit}"),
        "slope_high": Evidence(ends[1], f"decades per {unit}"),
        "total": Evidence(sign * stretch.decades, "decades"),
        f"{unit}s": Evidence(stretch.stop - stretch.start + 1, ""),
    }


def _vanishing(case: Case, stretch: Stretch) -> Finding:
    return Finding(
        "vanishing",
        Severity.ERROR,
        _where(case.flow, stretch),
        "The gradient shrinks from block to block on its way to the input: the first layers "
        "learn many times slower than the last.",
        _numbers(stretch, -1),
        advice.vanishing(case),
        Verdict.VANISHING,
    )


def _exploding(case: Case, stretch: Stretch, direction: str) -> Finding:
    what = {
        "backward": "The gradient grows from block to block on its way to the input.",
        "forward": "The activations grow from block to block on their way to the output.",
    }[direction]
    return Finding(
        f"exploding-{direction}",
        Severity.ERROR,
        _where(case.flow, stretch),
        what,
        _numbers(stretch, +1),
        advice.exploding(case, direction),
        Verdict.EXPLODING,
    )


def _masked(case: Case, stretch: Stretch) -> Iterator[Finding]:
    """Weight gradients that look level because activations decay the other way."""
    steps = [b - a for a, b in itertools.pairwise(case.weights.log10_grad)]
    decay = longest(steps, +1)  # towards the input = rising towards the output
    if len(steps) >= 2 and decay.decades < stretch.decades / 3:
        yield Finding(
            "masked-decay",
            Severity.WARNING,
            _where(case.flow, stretch),
            "The gradients of the weights look level, because the activations shrink towards the "
            "output as the gradient shrinks towards the input; a plot of weight gradients alone "
            "would hide the decay.",
            {
                "weight_gradients": Evidence(-decay.decades, "decades"),
                "block_gradients": Evidence(-stretch.decades, "decades"),
            },
        )


def _unsettled(case: Case, stretch: Stretch, what: str, limit: float) -> Iterator[Finding]:
    """A change that is certain but small, or large but uncertain."""
    if stretch.decades < limit:
        if stretch.is_certain and stretch.robust >= limits.MILD:
            yield Finding(
                f"mild-{what.replace(' ', '-')}",
                Severity.INFO,
                _where(case.flow, stretch),
                f"A certain {what} that does not matter at this depth; it adds up when the "
                "network is made deeper.",
                _numbers(stretch, -1 if what == "decay" else +1),
            )
    elif stretch.largest < stretch.decades / 2 and stretch.robust >= limits.MILD:
        yield Finding(
            f"uncertain-{what.replace(' ', '-')}",
            Severity.WARNING,
            _where(case.flow, stretch),
            f"A {what} that would matter, but the factors scatter too much to tell it from chance.",
            _numbers(stretch, -1 if what == "decay" else +1),
            "To settle it, record more steps or other seeds, a larger batch, or the inner layers "
            "of the blocks as modules of their own.",
            Verdict.INCONCLUSIVE,
        )


def _over_time(case: Case, module: str, loop: GradientFlow) -> Iterator[Finding]:
    backward = [math.log10(chi) for chi in loop.chi]
    decay, growth = longest(backward, -1), longest(backward, +1)
    if decay.matters(limits.VANISHING) and decay.is_certain:
        gated = case.is_gated(module)
        reach = 3 / math.log(10) / decay.slope
        yield Finding(
            "short-memory" if gated else "vanishing",
            Severity.WARNING if gated else Severity.ERROR,
            f"{_where(loop, decay)} (over time)",
            "The gradient shrinks with every step back in time"
            + (
                "; the gates can learn to keep it, but start half closed."
                if gated
                else f": nothing further back than about {reach:.0f} steps is learned."
            ),
            {
                **_numbers(decay, -1, "step"),
                "reach": Evidence(reach, "steps to 1/20 of the gradient"),
            },
            advice.short_memory(case, module),
            None if gated else Verdict.VANISHING,
        )
    if growth.matters(limits.EXPLODING) and growth.is_certain:
        yield Finding(
            "exploding-backward",
            Severity.ERROR,
            f"{_where(loop, growth)} (over time)",
            "The gradient grows with every step back in time.",
            _numbers(growth, +1, "step"),
            advice.exploding_in_time(module),
            Verdict.EXPLODING,
        )


def _weights_only(case: Case) -> Iterator[Finding]:
    """Without activations only the weights speak, and they cannot show a masked decay."""
    profile = case.weights
    steps = [a - b for a, b in itertools.pairwise(profile.log10_grad)]
    decay = longest(steps, -1)
    if decay.matters(limits.VANISHING) and decay.is_certain:
        yield Finding(
            "vanishing",
            Severity.ERROR,
            f"{profile.layers[decay.start]} ... {profile.layers[decay.stop]}",
            "The gradients of the weights shrink from layer to layer towards the input.",
            _numbers(decay, -1, "layer"),
            advice.vanishing(case),
            Verdict.VANISHING,
        )
