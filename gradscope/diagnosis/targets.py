"""Findings on the targets: out of reach, of another shape or scale than the output, all alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.loss_side import (
    CROSS_ENTROPY,
    RANGE,
    chance,
    losses,
    operations,
    output_module,
    output_name,
    output_shape,
)
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import Summary


def target_range(case: Case) -> Iterator[Finding]:
    """Targets that the output cannot reach."""
    told = operations(case)
    for target in _targets(case):
        if told:
            yield from _out_of_range(case, told, target)
    side = case.structure.loss
    if told and side is not None and side.sides is not None:
        yield from _too_far(case, told[0], side.sides)


def target_broadcast(case: Case) -> Iterator[Finding]:
    """Targets of another shape than the output."""
    if case.structure.loss is not None and case.structure.loss.stretched:
        yield Finding(
            "target-broadcast",
            Severity.ERROR,
            "loss",
            "The loss stretches the output of the network to the shape of the targets: each output "
            "is compared with the targets of all examples, and only their mean is learned.",
            {"examples": Evidence(math.prod(output_shape(case)), "each compared with all")},
            "Give both the same shape: targets.unsqueeze(1), or output.squeeze(1).",
            Verdict.STALLED,
        )


def target_scale(case: Case) -> Iterator[Finding]:
    """Targets so large that the output is still far from them, or was thrown beyond them."""
    every = [step.loss for step in case.trace.steps if step.loss is not None]
    known, level = losses(case), chance(case)
    if len(every) < limits.MIN_LOSSES or not known:
        return
    third = len(known) // 3
    last = statistics.median(known[-third:]) if third else math.inf
    for size in _sizes(case):
        far = last > limits.LOSS_AT_START * level or last > (1 - limits.FLAT_LOSS) * level
        stays = 2 * last > known[0] and (far or math.isnan(level))
        if size < limits.INPUT_LARGE or (len(known) == len(every) and not stays):
            continue
        yield Finding(
            "target-scale",
            Severity.ERROR,
            "loss",
            "The targets are large, while the outputs of a network start around one: after these "
            "steps the loss has not even halved, since it takes many steps, or far too large ones, "
            "to get there.",
            {
                "rms": Evidence(size, "of the targets"),
                "loss": Evidence(last, "median of the last third of the steps"),
                "start": Evidence(known[0], "at the first recorded step"),
            },
            "Standardise the targets: subtract their mean and divide by their standard deviation, "
            "and undo both for the predictions.",
            Verdict.EXPLODING,
        )


def _sizes(case: Case) -> Iterator[float]:
    """Size of the targets: as they were seen, or as a mean of absolute errors tells it."""
    for target in _targets(case):
        # An output that begins at their mean, as by its bias, is not far from them however large.
        apart = abs(target.mean) > limits.LOSS_AT_START * target.std
        met = apart and losses(case)[0] < limits.LOSS_AT_START * chance(case)
        if chance(case) > 0 and not met:
            yield math.hypot(target.mean, target.std)
    told = operations(case)
    absolute = told[-3:] == ("Sub", "Abs", "Mean") or told[-1:] in {
        ("SmoothL1Loss",),
        ("HuberLoss",),
    }
    columns = [i for i, t in case.columns("activation") if t.module == output_module(case)]
    if absolute and columns and not _targets(case):
        size = float(case.values("rms", columns[-1])[0])
        if losses(case)[0] >= limits.INPUT_LARGE * size:  # so large are they beside the outputs
            yield losses(case)[0]


def constant_target(case: Case) -> Iterator[Finding]:
    """Classes that are the same for all examples."""
    told, shape = operations(case), output_shape(case)
    side = case.structure.loss
    plain = told[-2:] == CROSS_ENTROPY[0] and told[0] in {"Addmm", "Mm", "Linear", "LogSoftmax"}
    if side is None or side.constant != 0 or not plain or len(shape) != 2:
        return
    examples, classes = shape
    if examples < limits.MIN_LABELS or len(case.trace.steps) < limits.MIN_STRETCH:
        return
    certain = classes > 2  # one of two classes may well be rare
    yield Finding(
        "constant-target",
        Severity.ERROR if certain else Severity.WARNING,
        "loss",
        "All examples of the first recorded batch have the same label: the network learns to give "
        "it whatever the input.",
        {"examples": Evidence(examples, "with the same label"), "classes": Evidence(classes, "")},
        "Look at the labels: an argmax of what are classes already gives 0 for all, and data "
        "sorted by class must be shuffled.",
        Verdict.DEAD if certain else None,
    )


def _targets(case: Case) -> Sequence[Summary]:
    return case.structure.loss.targets if case.structure.loss is not None else ()


def _out_of_range(case: Case, told: Sequence[str], target: Summary) -> Iterator[Finding]:
    probability = told[-1].startswith("BinaryCrossEntropy")
    low, high = (0.0, 1.0) if probability else RANGE.get(told[0], (-math.inf, math.inf))
    beyond = max(low - target.low, target.high - high)
    if not beyond > max(limits.BEYOND_RANGE * target.std, 0.02):
        return
    bounds = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} and above"
    evidence = {
        "lowest": Evidence(target.low, "of the targets"),
        "highest": Evidence(target.high, "of the targets"),
    }
    if probability:
        message = (
            "The targets of the binary cross entropy lie outside [0, 1]: the loss has no lower "
            "bound, and the outputs grow without end."
        )
        remedy = "Make the targets 0 and 1: targets.float() of classes 0 and 1, masks over 255."
    else:
        message, remedy = _told(told[0], bounds)
    verdict = Verdict.EXPLODING if probability else Verdict.VANISHING
    where = output_name(case)
    yield Finding("target-range", Severity.ERROR, where, message, evidence, remedy, verdict)


def _too_far(case: Case, maker: str, sides: tuple[float, float, float]) -> Iterator[Finding]:
    """An absolute error larger than that of any targets which the output can give."""
    low, high = RANGE.get(maker, (-math.inf, math.inf))
    above, below, most = sides
    if not math.isfinite(high - low):
        return
    beyond = (low * below - high * above) - most
    if beyond <= limits.BEYOND_ON_AVERAGE * (high - low):
        return
    message, remedy = _told(maker, f"[{low:g}, {high:g}]")
    yield Finding(
        "target-range",
        Severity.ERROR,
        output_name(case),
        message,
        {
            "beyond": Evidence(beyond, "of the output, on average over the targets, at least"),
            "above": Evidence(above, "share of the outputs with a target above them"),
        },
        remedy,
        Verdict.VANISHING,
    )


def _told(maker: str, bounds: str) -> tuple[str, str]:
    """Message and remedy for an output that cannot give its targets."""
    name = maker.lower()
    message = (
        f"The targets lie outside {bounds}, which is all that the {name} at the output of the "
        "network can give: it is driven to its bound, where it has no gradient."
    )
    remedy = f"Remove the {name} at the end of the network, or scale the targets to its range."
    return message, remedy
