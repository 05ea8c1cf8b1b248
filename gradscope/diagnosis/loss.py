"""Findings on the side of the loss: outputs that do not fit it, targets out of reach, chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.loss_side import (
    RANGE,
    chance,
    hardly_learned,
    losses,
    operations,
    output_module,
    output_name,
)
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import Summary

_FREE = {"Addmm", "Mm", "Convolution", "Linear", "NativeLayerNorm"}
"""Operations whose output is bounded on no side: logits."""

_WITH_LOGITS = "BinaryCrossEntropyWithLogits"
_LIKELIHOODS = {"NllLoss": "NLLLoss", "NllLoss2D": "NLLLoss", "KlDiv": "KLDivLoss"}


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
    if _clamped_logarithm(told):
        yield from _no_probability(case, told[0])
        return
    read = (
        "KlDiv" if told[1:3] == ("Mul", "Sub") and told[3:4] in {("Sum",), ("Mean",)} else told[1]
    )
    misfit = _squared(case, told[0]) if read == "MseLoss" else _misfit(told[0], read)
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


def _clamped_logarithm(told: Sequence[str]) -> bool:
    """Whether the loss clamps what it takes the logarithm of, as if it were a probability."""
    clamps = [i for i, name in enumerate(told[1:6], 1) if name.startswith("Clamp")]
    between = {*told[1 : clamps[0]]} if clamps else {""}
    return between <= {"Sum", "Div", "Rsub"} and "Log" in told[clamps[0] : clamps[0] + 3]


def _no_probability(case: Case, made: str) -> Iterator[Finding]:
    if made not in {*_FREE, "Relu", "Tanh"}:
        return
    known, third = losses(case), len(losses(case)) // 3
    stuck = bool(third) and statistics.median(known[-third:]) > limits.HARDLY_LEARNED * known[0]
    stuck = stuck and len(known) >= limits.MIN_LOSSES
    yield Finding(
        "no-probability",
        Severity.ERROR if stuck else Severity.WARNING,
        output_name(case),
        "The loss takes the logarithm of the output and clamps it as a probability, which it is "
        "not: below zero and above one no gradient comes back"
        + (", and the loss does not fall." if stuck else "."),
        _values(case),
        "Give cross_entropy or BCEWithLogitsLoss the logits, or end the network in a softmax or "
        "sigmoid.",
        Verdict.DEAD if stuck else None,
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
    if read in _LIKELIHOODS:
        return _before_likelihood(made, _LIKELIHOODS[read])
    return None


def _squared(case: Case, made: str) -> _Misfit | None:
    """A squared error of probabilities of classes; a fault where nothing was learned with it."""
    side = case.structure.loss
    if made not in {"Sigmoid", "Softmax"} or side is None:
        return None
    stuck = any(_is_binary(target) for target in side.targets) and hardly_learned(case)
    if made == "Sigmoid" and not stuck:
        return None
    return _Misfit(
        "softmax-squared-error" if made == "Softmax" else "sigmoid-squared-error",
        Severity.ERROR if stuck else Severity.WARNING,
        f"A squared error of probabilities: where the {made.lower()} is sure of the wrong class, "
        "the gradient is zero, and it is small everywhere"
        + (": the loss is hardly below that of a constant prediction." if stuck else "."),
        "Give cross_entropy the logits instead (or BCEWithLogitsLoss, for yes or no), and raise "
        "the learning rate if the loss still hardly falls.",
        Verdict.VANISHING if stuck else None,
    )


def _is_binary(target: Summary) -> bool:
    """Whether targets are 0 and 1 alone: then their variance is mean (1 - mean)."""
    bounds = abs(target.low) < limits.FLAT_LOSS and abs(target.high - 1) < limits.FLAT_LOSS
    return bounds and abs(target.std**2 - target.mean * (1 - target.mean)) < limits.FLAT_LOSS / 2


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
        low, high = RANGE[made]
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
    low, high = RANGE[made]
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


def _before_likelihood(made: str, loss: str) -> _Misfit | None:
    if made == "Softmax":
        return _Misfit(
            "likelihood-of-probabilities",
            Severity.ERROR,
            f"{loss} is given probabilities, the output of a softmax, and expects their "
            "logarithms: what is sure of the wrong class gets no gradient.",
            "End the network in log_softmax, or give cross_entropy the logits.",
            Verdict.VANISHING,
        )
    if made in _FREE or made == "Relu":
        return _Misfit(
            "likelihood-of-logits",
            Severity.ERROR,
            f"{loss} is given logits and expects logarithms of probabilities: the loss has no "
            "lower bound, and the logits grow without end.",
            "Give cross_entropy the logits, or end the network in log_softmax.",
            Verdict.EXPLODING,
        )
    return None


def broken_loss(case: Case) -> Iterator[Finding]:
    """A loss that is NaN or Inf; where a gradient is as well, that finding takes this one in."""
    broken = [s.step for s in case.trace.steps if s.loss is not None and not math.isfinite(s.loss)]
    if broken:
        most = 2 * len(broken) >= len(case.trace.steps)
        yield Finding(
            "non-finite-loss",
            Severity.ERROR if most else Severity.WARNING,
            "loss",
            f"The loss is NaN or Inf at {'most' if most else 'some'} steps, while the gradients "
            "stay finite: those steps teach nothing.",
            {"steps": Evidence(len(broken), f"of {len(case.trace.steps)}")},
            "Look for batches without a target, as where each label is the ignore_index: a mean "
            "over nothing is 0/0; divide by max(count, 1), or leave such batches out.",
            Verdict.NON_FINITE if most else None,
            since=broken[0],
        )


def unbounded_loss(case: Case) -> Iterator[Finding]:
    """A loss that falls below zero without end, and outputs that grow with it."""
    known, third = losses(case), len(losses(case)) // 3
    columns = [i for i, t in case.columns("activation") if t.module == output_module(case)]
    if len(known) < limits.MIN_LOSSES or not columns:
        return
    first, last = (statistics.median(part) for part in (known[:third], known[-third:]))
    sizes = case.values("rms", columns[-1])
    grown = float(sizes[-1] / sizes[0]) if len(sizes) and sizes[0] > 0 else 0.0
    runs = last < -limits.RUN_AWAY * max(abs(known[0]), limits.FLAT_LOSS) and last < first
    if not runs or not grown >= limits.RUN_AWAY:
        return
    yield Finding(
        "unbounded-loss",
        Severity.ERROR,
        "loss",
        "The loss falls below zero without end, and the outputs of the network grow with it: it "
        "has no lower bound.",
        {
            "loss": Evidence(last, "median of the last third of the steps"),
            "start": Evidence(known[0], "at the first recorded step"),
            "outputs": Evidence(grown, "times as large as at the start"),
        },
        "Look at the sign of the loss (a likelihood is maximised, its negative minimised) and at "
        "what it expects: logarithms of probabilities for NLLLoss and KLDivLoss, targets within "
        "[0, 1] for binary cross entropies; bound the outputs of a critic.",
        Verdict.EXPLODING,
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
