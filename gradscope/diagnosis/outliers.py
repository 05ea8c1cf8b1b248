"""Findings on single blocks and layers that are out of line with the others."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, known_steps
from gradscope.diagnosis.robust import location
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict


def odd_blocks(case: Case) -> Iterator[Finding]:
    """One block that scales gradient and activation alike, unlike all others."""
    flow = case.flow
    if len(flow.blocks) < 4:
        return
    backward = [math.log10(chi) for chi in flow.chi]
    forward = known_steps(flow.log10_activation)
    odd_backward, odd_forward = _excess(backward), _excess(forward)
    for i in range(len(backward)):
        name = flow.blocks[i + 1]
        if odd_backward[i] * odd_forward[i] <= 0 or case.is_scale_free(name):
            continue
        jump = math.copysign(min(abs(odd_backward[i]), abs(odd_forward[i])), odd_backward[i])
        allowed = case.pooling(flow.blocks[i], name)
        if abs(jump) < limits.ODD_BLOCK + (allowed if jump < 0 else 0.0):
            continue
        block = case.blocks.get(name)
        inside = block.modules if block is not None else ()
        misscaled = case.is_misscaled(inside)
        wrong = misscaled and not (i == len(backward) - 1 and _is_heads_own(case, inside, jump))
        yield Finding(
            "odd-block",
            Severity.ERROR if wrong else Severity.WARNING,
            name,
            "This block scales activations and gradient alike, unlike its neighbours: "
            + (
                "by how it is built, since its weights are drawn as usual."
                if not misscaled
                else "its weights are off by about this factor."
                if wrong
                else "its weights are off by about this factor, which as the last it passes on to "
                "all layers before it alike."
            ),
            {
                "factor": Evidence(10**jump, "times its neighbours"),
                "gradient": Evidence(backward[i], "decades across the block"),
                "activation": Evidence(forward[i], "decades across the block"),
            },
            advice.odd(name, jump) if misscaled else "",
            None if not wrong else Verdict.EXPLODING if jump > 0 else Verdict.VANISHING,
        )


def _is_heads_own(case: Case, inside: Sequence[str], jump: float) -> bool:
    """Whether the jump of the last block is no fault of the trunk.

    Heads are often scaled down on purpose. One that is drawn too large scales the gradient of all
    layers before it alike; what its outputs do to the loss is `large_logits`' to say.
    """
    return jump < 0 or not case.is_misscaled(set(inside) - set(case.weights.layers[-1:]))


def odd_layers(case: Case) -> Iterator[Finding]:
    """One layer whose gradient/weight is out of line with the layers of its type around it."""
    profile = case.weights
    rows = zip(profile.layers, profile.log10_grad, profile.log10_weight, strict=True)
    # A head is off for all layers alike; a ratio that is not finite belongs to a weight of zero.
    known = [(name, g - w) for name, g, w in list(rows)[:-1] if math.isfinite(g - w)]
    sizes = Counter(case.role(name) for name, _ in known)
    groups: dict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
    for name, ratio in known:
        role = case.role(name)
        groups[role if sizes[role] >= 4 else role[:2]].append((name, ratio))
    odd = [item for group in groups.values() for item in _outliers(group)]
    if len(odd) > max(1, len(profile.layers) // 20):
        return  # so many are no accident: that is how the network is built
    for name, by in odd:
        wrong = case.is_misscaled([name])
        why = (
            "its weights are far too "
            + ("large, so that it hardly learns." if by < 0 else "small for its gradient.")
            if wrong
            else "its weights are drawn as usual, so that this is how the network is built, as in "
            "a gate."
        )
        yield Finding(
            "odd-layer",
            Severity.ERROR if wrong else Severity.WARNING,
            name,
            "The gradient of this layer is out of line with its weights when compared with its "
            f"neighbours: {why}",
            {"gradient/weight": Evidence(by, "decades over its neighbours")},
            advice.odd(name, -by / 2) if wrong else "",
            None if not wrong else Verdict.VANISHING if by < 0 else Verdict.EXPLODING,
        )


def _outliers(group: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Members that stand out from all four around them, and from the scatter of their group."""
    if len(group) < 4:
        return
    steps = [abs(b[1] - a[1]) for a, b in itertools.pairwise(group)]
    usual = limits.ODD_SPREAD * statistics.median(steps)
    for i, (name, value) in enumerate(group):
        around = [group[j][1] for j in (i - 2, i - 1, i + 1, i + 2) if 0 <= j < len(group)]
        by = value - statistics.median(around)
        # What comes before and after a mis-scaled layer may be on different levels.
        clear = min(math.copysign(1.0, by) * (value - other) for other in around)
        if abs(by) > max(limits.ODD_LAYER, usual) and clear > limits.ODD_LAYER / 2:
            yield name, by


def _excess(steps: Sequence[float]) -> list[float]:
    """What each step has beyond the centre; 0 where it is within the usual scatter."""
    centre = location(steps)[0]
    spread = 1.4826 * statistics.median(abs(step - centre) for step in steps)
    excess = (step - centre for step in steps)
    return [e if abs(e) > limits.ODD_SPREAD * spread else 0.0 for e in excess]
