"""Findings on the size of the steps: the learning rate over time, steps too large or too small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import torch

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.gates import behind_gates
from gradscope.diagnosis.loss_side import hardly_learned, losses
from gradscope.diagnosis.movement import movement
from gradscope.diagnosis.optimizer import group_of, lowered, rate_of, rates, table
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict

_SMALL_BECAUSE = {"zeroed-before-step", "clipped", "updates-lost", "underflow"}
"""Causes of updates that are too small; of those that are too large: `gradients-accumulate`."""


def learning_rate(case: Case) -> Iterator[Finding]:
    """A learning rate that is zero, or that fell to nothing long before the end."""
    series = rates(case)
    if len(series) < limits.MIN_UPDATES:
        return
    steps, values = zip(*series, strict=True)
    highest = max(values)
    if highest == 0:
        yield Finding(
            "learning-rate-zero",
            Severity.ERROR,
            "optimizer",
            "The learning rate is 0 at every recorded step: no weight moves.",
            {"steps": Evidence(len(values), "with a learning rate of 0")},
            "Set a learning rate, and look at the schedule that computes it.",
            Verdict.STALLED,
        )
        return
    low = _low_since(values, highest)
    if low is None:
        return
    yield Finding(
        "updates-fade",
        Severity.ERROR,
        "optimizer",
        f"The learning rate fell from {highest:.3g} to {values[-1]:.3g}: the weights "
        "hardly move any more.",
        {
            "share": Evidence((len(values) - low) / len(values), "of the recorded steps"),
            "learning rate": Evidence(values[-1], "at the end"),
            "highest": Evidence(highest, ""),
        },
        "Look at the schedule of the learning rate: call scheduler.step() once per epoch if its "
        "numbers are epochs, give it the number of steps that the run has, and give a schedule "
        "that follows a metric the metric it expects.",
        Verdict.STALLED,
        since=steps[low],
    )


def updates(case: Case) -> Iterator[Finding]:
    """Steps that are too large or too small for the weights, where nothing else explains it."""
    waiting = behind_gates(case)
    columns = [
        i
        for i, tensor in case.columns("weight")
        if len(tensor.shape) > 1
        and case.largest("weight_norm", i) > 0
        and rate_of(case, tensor.name)
        and tensor.name not in waiting
    ]
    if not columns:
        return
    ratios, grads = (table(case, name, columns) for name in ("update_ratio", "norm"))
    # Without a gradient no step is expected: that is for others to tell.
    ratios = torch.where((grads == 0) & (ratios == 0), torch.nan, ratios)
    typical = ratios.nanmedian(dim=1).values  # over layers, per step
    typical = typical[torch.isfinite(typical)]
    if len(typical) < limits.MIN_UPDATES:
        return
    highest, middle = typical.max().item(), typical.median().item()
    evidence = {
        "update/weight": Evidence(middle, "median over layers and steps"),
        "largest": Evidence(highest, "median over layers"),
    }
    causes = {finding.kind for finding in (*movement(case), *learning_rate(case))}
    stuck = _is_stuck(case)
    if stuck is not None:
        evidence["loss"] = Evidence(stuck, "share by which it fell over the recorded steps")
    if "gradients-accumulate" not in causes:
        yield from _too_large(case, columns, highest, middle, evidence)
    if not causes & _SMALL_BECAUSE and not any("rate" in c or "fade" in c for c in causes):
        yield from _too_small(case, columns, typical.tolist(), evidence, flat=stuck is not None)


def weight_decay(case: Case) -> Iterator[Finding]:
    """Weights that decay faster than any gradient builds them up."""
    columns = [i for i, t in case.columns("weight") if t.name in case.held and len(t.shape) > 1]
    columns = [
        i for i in columns if case.trace.tensors[i].name not in case.structure.scale_invariant
    ]
    pulls = [_pull(case, case.trace.tensors[i].name) for i in columns]
    fast = [i for i, pull in zip(columns, pulls, strict=True) if pull >= limits.DECAY_PER_STEP]
    if not fast or len(case.trace.steps) < limits.MIN_UPDATES:
        return
    left = (table(case, "weight_norm", fast)[-1] / table(case, "weight_norm", fast)[0]).median()
    if not left < 0.5:
        return
    names = [case.trace.tensors[i].name for i in fast]
    yield Finding(
        "weight-decay",
        Severity.ERROR,
        listed(names),
        "Weight decay takes these weights away faster than the gradient builds them up.",
        {
            "decay": Evidence(max(pulls), "of a weight, each step"),
            "left": Evidence(left.item(), "of the weight norm at the last recorded step, median"),
        },
        "Lower the weight decay: learning rate times weight decay is usually 1e-4 or less.",
        Verdict.VANISHING,
    )


def _pull(case: Case, name: str) -> float:
    """Share of a weight that decay takes in a step, where it is not mixed with the gradient."""
    group = group_of(case, name)
    if group is None or group.optimizer not in {"SGD", "AdamW"}:
        return 0.0
    return group.settings.get("weight_decay", 0.0) * rate_of(case, name)


def _low_since(values: Sequence[float], highest: float) -> int | None:
    """Index from which on the rate stays at nothing, if that is too long for the end of a run."""
    for share, least in ((limits.RATE_FALLEN, 0.2), (limits.RATE_GONE, 0.1)):
        low = len(values)
        while low and values[low - 1] <= share * highest * (1 + 1e-6):  # a product of tenths
            low -= 1
        n = len(values) - low
        if n >= limits.MIN_UPDATES and n >= least * len(values):
            return low
    return None


def _too_large(
    case: Case, columns: list[int], highest: float, middle: float, evidence: dict[str, Evidence]
) -> Iterator[Finding]:
    rattles = "loss" in evidence and middle >= limits.UPDATE_RATTLES
    # An update as large as the weight at most doubles it.
    doubled = _growth(case, columns) >= math.log10(1 + limits.UPDATE_TOO_LARGE)
    large = highest >= limits.UPDATE_TOO_LARGE or doubled
    if not large and not rattles and middle < limits.UPDATE_LARGE:
        return
    yield Finding(
        "updates-too-large",
        Severity.ERROR if large or rattles else Severity.WARNING,
        "optimizer",
        "Each step changes the weights by about their own size or more: what they had learned "
        "is lost."
        if large
        else "The steps are so large for the weights that the loss only rattles: it is not below "
        "where it began."
        if rattles
        else "The steps are large for the weights.",
        evidence,
        advice.rate(highest, middle),
        Verdict.EXPLODING if large or rattles else None,
    )


def _too_small(
    case: Case,
    columns: list[int],
    typical: list[float],
    evidence: dict[str, Evidence],
    *,
    flat: bool,
) -> Iterator[Finding]:
    # Momentum adds up over the first steps: what it will make of them is what counts.
    highest = max(typical) * _momentum_to_come(case) * lowered(case)
    middle = statistics.median(typical)
    creeping = flat or hardly_learned(case)
    if highest >= (limits.UPDATE_CREEPING if creeping else limits.UPDATE_SMALL):
        return
    rising = highest >= limits.UPDATE_LOST and _warms_up(case, typical)
    small = not rising and (
        highest < (limits.UPDATE_SMALL if flat else limits.UPDATE_TOO_SMALL)
        or (hardly_learned(case) and (flat or len(losses(case)) >= 3 * limits.MIN_LOSSES))
    )
    yield Finding(
        "updates-too-small",
        Severity.ERROR if small else Severity.WARNING,
        "optimizer",
        "The steps hardly change the weights"
        + (", and the loss hardly falls" if flat else "")
        + (": no run is long enough to learn with them" if small else "")
        + ("; they grow, as in a warm-up." if rising else "."),
        evidence,
        advice.rate(max(typical), middle, eps=_eps_in_the_way(case, columns)),
        Verdict.STALLED if small else None,
    )


def _eps_in_the_way(case: Case, columns: list[int]) -> float:
    """The eps that an optimizer adds to the gradient it divides by, where it is more; else 0."""
    eps = max((group.settings.get("eps", 0.0) for group in case.structure.groups), default=0.0)
    return eps if eps > table(case, "rms", columns).nanmedian().item() else 0.0


def _warms_up(case: Case, typical: list[float]) -> bool:
    """Whether the learning rate is still being raised; without it, whether the updates grow."""
    series = [rate for _, rate in rates(case, from_start=True)]
    if not series:
        return typical[-1] >= limits.WARM_UP * typical[0]
    return series[-1] >= limits.WARM_UP * series[0] and series[-1] == max(series)


def _momentum_to_come(case: Case) -> float:
    """Factor by which momentum can still raise the updates: 1 / (1 - momentum^steps)."""
    momentum = max(
        (group.settings.get("momentum", 0.0) for group in case.structure.groups), default=0.0
    )
    steps = case.trace.steps[-1].step + 1
    return 1 / (1 - momentum**steps) if 0 < momentum < 1 else 1.0


def _is_stuck(case: Case) -> float | None:
    """Share by which the loss fell, where it is known over many steps and fell by next to nothing.

    Compared are the means of the first and of the last third; what their scatter explains is no
    fall.
    """
    if case.earlier is not None:
        return None  # a network that has learned what it can is not stuck
    losses = [step.loss for step in case.trace.steps if step.loss is not None]
    losses = [loss for loss in losses if math.isfinite(loss)]
    if len(losses) < limits.MIN_LOSSES or not losses[0]:
        return None
    third = len(losses) // 3
    first, last = losses[:third], losses[-third:]
    fall = statistics.fmean(first) - statistics.fmean(last)
    error = math.hypot(statistics.stdev(first), statistics.stdev(last)) / math.sqrt(third)
    share = fall / abs(statistics.fmean(first))
    return share if fall < 2 * error and share < limits.FLAT_LOSS else None


def _growth(case: Case, columns: list[int]) -> float:
    """Most decades per step by which the typical weight norm grew between recorded steps.

    It tells of steps in between that were not recorded. Growth over a whole run tells nothing of
    its steps: weights that start small grow by a decade while they learn.
    """
    steps = torch.tensor([step.step for step in case.trace.steps], device="cpu")
    norms = table(case, "weight_norm", columns).double().log10()
    grown = norms.diff(dim=0).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).median(dim=1).values
    return (grown / steps.diff()).max().item() if len(grown) else 0.0
