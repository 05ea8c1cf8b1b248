"""Findings on the side of the loss: outputs that do not fit it, targets out of reach, chance."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.loss_side import chance, losses, operations, output_name
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import Summary

_RANGE = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
    "Relu": (0.0, math.inf),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
}
"""What operations that can make an output are able to give."""

_FREE = {"Addmm", "Mm", "Convolution", "Linear", "NativeLayerNorm"}
"""Operations whose output is bounded on no side: logits."""

_WITH_LOGITS = "BinaryCrossEntropyWithLogits"
_COMPARES = {"MseLoss", "SmoothL1Loss", "HuberLoss", "L1Loss", "Abs"}


class _Misfit(NamedTuple):
    """An output and a loss that do not go together."""

    kind: str
    severity: Severity
    message: str
    remedy: str
    verdict: Verdict | None


def loss_fit(case: Case) -> Iterator[Finding]:
    """An activation at the output that the loss applies as well, or that it cannot use."""
    told = operations(case)
    if len(told) < 2:
        return
    misfit = _misfit(*told[:2])
    if misfit is not None:
        name = output_name(case)
        yield Finding(
            misfit.kind,
            misfit.severity,
            name,
            misfit.message,
            _values(case),
            misfit.remedy,
            misfit.verdict,
        )


def _values(case: Case) -> dict[str, Evidence]:
    known = losses(case)
    level = chance(case)
    found = {"loss": Evidence(known[-1], "at the last recorded step")} if known else {}
    if math.isfinite(level):
        found["constant"] = Evidence(level, "the loss of a constant prediction")
    return found


def _misfit(made: str, read: str) -> _Misfit | None:
    """What is wrong with an output made by one operation and read by another."""
    if read == "LogSoftmax":
        return _before_softmax(made)
    if read == _WITH_LOGITS:
        return _before_sigmoid(made)
    if read in {"NllLoss", "NllLoss2D"}:
        return _before_likelihood(made)
    if made == "Softmax" and read == "MseLoss":
        return _Misfit(
            "softmax-squared-error",
            Severity.WARNING,
            "A squared error of probabilities: where the softmax is sure of the wrong class, the "
            "gradient is zero.",
            "Give cross_entropy the logits instead.",
            None,
        )
    return None


def _before_softmax(made: str) -> _Misfit | None:
    if made == "Softmax":
        return _Misfit(
            "double-softmax",
            Severity.ERROR,
            "The softmax is applied twice: the network ends in a softmax, and the cross entropy "
            "takes another. Its logits lie in [0, 1], so that no class gets sure, and two "
            "softmaxes shrink the gradient.",
            "Give the loss the logits: remove the softmax at the end of the network, or use "
            "NLLLoss on log_softmax; take the softmax only to read probabilities.",
            Verdict.VANISHING,
        )
    if made == "LogSoftmax":
        return _Misfit(
            "double-log-softmax",
            Severity.INFO,
            "The network ends in a log_softmax, and the cross entropy takes another, which changes "
            "nothing but costs time.",
            "Use NLLLoss, or remove the log_softmax.",
            None,
        )
    if made in {"Sigmoid", "Tanh", "Hardtanh"}:
        low, high = _RANGE[made]
        return _Misfit(
            "bounded-logits",
            Severity.ERROR,
            f"The logits of the cross entropy come out of a {made.lower()}: they lie in "
            f"[{low:g}, {high:g}], so that no class gets sure, and where they reach a bound the "
            "gradient is zero.",
            f"Give the loss the logits: remove the {made.lower()} at the end of the network.",
            Verdict.VANISHING,
        )
    if made == "Relu":
        return _Misfit(
            "bounded-logits",
            Severity.WARNING,
            "The logits of the cross entropy come out of a ReLU: a class whose logit is negative "
            "gets no gradient, and none can fall below zero.",
            "Remove the ReLU at the end of the network.",
            None,
        )
    return None


def _before_sigmoid(made: str) -> _Misfit | None:
    if made not in {"Sigmoid", "Softmax", "Tanh", "Relu", "Hardtanh"}:
        return None
    doubled = "The sigmoid is applied twice" if made == "Sigmoid" else "The logits are bounded"
    low, high = _RANGE[made]
    reach = " to ".join(f"{1 / (1 + math.exp(-x)):.2g}" for x in (low, high))
    return _Misfit(
        "double-sigmoid" if made == "Sigmoid" else "bounded-logits",
        Severity.ERROR,
        f"{doubled}: the network ends in a {made.lower()}, and the loss takes a sigmoid of it, so "
        f"that its probabilities lie in {reach}.",
        f"Give BCEWithLogitsLoss the logits: remove the {made.lower()} at the end of the network"
        + (", or use BCELoss." if made == "Sigmoid" else "."),
        Verdict.VANISHING,
    )


def _before_likelihood(made: str) -> _Misfit | None:
    if made == "Softmax":
        return _Misfit(
            "likelihood-of-probabilities",
            Severity.ERROR,
            "NLLLoss is given probabilities, the output of a softmax, and expects their "
            "logarithms: what is sure of the wrong class gets no gradient.",
            "End the network in log_softmax, or give cross_entropy the logits.",
            Verdict.VANISHING,
        )
    if made in _FREE or made == "Relu":
        return _Misfit(
            "likelihood-of-logits",
            Severity.ERROR,
            "NLLLoss is given logits and expects logarithms of probabilities: the loss has no "
            "lower bound, and the logits grow without end.",
            "Give cross_entropy the logits, or end the network in log_softmax.",
            Verdict.EXPLODING,
        )
    return None


def target_range(case: Case) -> Iterator[Finding]:
    """Targets that the output cannot reach, and targets of another shape than the output."""
    told = operations(case)
    if any(made == "Expand" and read in _COMPARES for made, read in itertools.pairwise(told)):
        yield Finding(
            "target-broadcast",
            Severity.ERROR,
            "loss",
            "The loss stretches the output of the network to the shape of the targets: each output "
            "is compared with the targets of all examples, and only their mean is learned.",
            {},
            "Give both the same shape: targets.unsqueeze(1), or output.squeeze(1).",
            Verdict.STALLED,
        )
    for target in case.structure.loss.targets if case.structure.loss is not None else ():
        if told:
            yield from _out_of_range(case, told, target)


def _out_of_range(case: Case, told: Sequence[str], target: Summary) -> Iterator[Finding]:
    probability = told[-1].startswith("BinaryCrossEntropy")
    low, high = (0.0, 1.0) if probability else _RANGE.get(told[0], (-math.inf, math.inf))
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
        message = (
            f"The targets lie outside {bounds}, which is all that the {told[0].lower()} at the "
            "output of the network can give: it is driven to its bound, where it has no gradient."
        )
        remedy = (
            f"Remove the {told[0].lower()} at the end of the network, or scale the targets to its "
            "range."
        )
    verdict = Verdict.EXPLODING if probability else Verdict.VANISHING
    where = output_name(case)
    yield Finding("target-range", Severity.ERROR, where, message, evidence, remedy, verdict)


def broken_loss(case: Case) -> Iterator[Finding]:
    """A loss that is NaN or Inf; where a gradient is as well, that finding takes this one in."""
    broken = [s.step for s in case.trace.steps if s.loss is not None and not math.isfinite(s.loss)]
    if broken:
        yield Finding(
            "non-finite-loss",
            Severity.WARNING,
            "loss",
            "The loss is NaN or Inf at some steps, while the gradients stay finite: those steps "
            "teach nothing.",
            {"steps": Evidence(len(broken), f"of {len(case.trace.steps)}")},
            "Look for batches without a target: a mean over nothing is 0/0; divide by "
            "max(count, 1), or leave such batches out.",
            since=broken[0],
        )


def not_learning(case: Case) -> Iterator[Finding]:
    """A loss that neither falls nor is below that of a prediction that is the same for all."""
    known, level = losses(case), chance(case)
    third = len(known) // 3
    if len(known) < limits.MIN_LOSSES or not level > 0:
        return
    first, last = statistics.median(known[:third]), statistics.median(known[-third:])
    if last < (1 - limits.FLAT_LOSS) * level or last < (1 - 5 * limits.FLAT_LOSS) * first:
        return
    steps = case.trace.steps[-1].step - case.trace.steps[0].step + 1
    long = steps >= limits.LONG_RUN
    yield Finding(
        "not-learning",
        Severity.ERROR if long else Severity.WARNING,
        "loss",
        f"After {steps} steps the loss is no lower than that of a prediction that is the same for "
        "every example: the network has learned nothing of its inputs.",
        {
            "loss": Evidence(last, "median of the last third of the steps"),
            "start": Evidence(first, "median of the first third"),
            "constant": Evidence(level, "the loss of a constant prediction"),
            "steps": Evidence(steps, ""),
        },
        "Train longer; if it stays there, check that inputs and targets belong together (one "
        "shuffled without the other), that the learning rate is neither too small nor too large, "
        "and that a handful of examples can be learned by heart.",
        Verdict.STALLED if long else None,
    )
