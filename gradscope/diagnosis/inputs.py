"""Findings on the inputs of the network: of the wrong scale, or the same for all examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.loss_side import chance, logit_sizes, losses
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.layers import WEIGHTED, is_norm, names
from gradscope.trace.structure import ModuleInfo, Summary


def input_scale(case: Case) -> Iterator[Finding]:
    """Inputs in the hundreds, or hardly above zero, that no normalisation takes up."""
    first = _first_layer(case)
    if first is None or _is_normalised(case, first):
        return
    for summary in case.structure.inputs:
        rms = math.hypot(summary.mean, summary.std)
        if rms >= limits.INPUT_LARGE and _size(case, first.name) >= limits.INPUT_LARGE / 10:
            yield _large(case, summary, rms)
        elif 0 < rms <= limits.INPUT_SMALL and len(case.structure.inputs) == 1:
            yield Finding(
                "input-scale",
                Severity.WARNING,
                summary.name,
                "The inputs are close to zero: next to the biases of the first layer they hardly "
                "count, as when pixels are divided by 255 twice.",
                _numbers(summary, rms),
                "Standardise the inputs: subtract the mean and divide by the standard deviation of "
                "each feature.",
            )


def constant_input(case: Case) -> Iterator[Finding]:
    """Inputs that are the same for all examples."""
    known = [s.variation for s in case.structure.inputs]
    first = _first_layer(case)
    if not known or first is None or not max(known) < limits.ALIKE:
        return
    if 0 <= case.largest("variation", _column(case, first.name)) < limits.ALIKE:
        trained = len(case.trace.steps) > 1  # a probe may well be given ones
        yield Finding(
            "constant-input",
            Severity.ERROR if trained else Severity.WARNING,
            case.structure.inputs[0].name,
            "All examples of the first recorded batch are the same: there is nothing to tell them "
            "apart by.",
            {"variation": Evidence(max(known), "variance over examples / mean square")},
            "Look at what the data loader gives: the same file, frame or index again and again, or "
            "a preprocessing that clips everything to one value.",
            Verdict.DEAD if trained else None,
        )


def _large(case: Case, summary: Summary, rms: float) -> Finding:
    bites = _bites(case)
    return Finding(
        "input-scale",
        Severity.ERROR if bites else Severity.WARNING,
        summary.name,
        "The inputs are not standardised and large: every layer after them is as much too large"
        + (f", and {bites}." if bites else "."),
        _numbers(summary, rms),
        "Standardise the inputs: subtract the mean and divide by the standard deviation of each "
        "feature (pixels: to [-1, 1] or by the statistics of the data set), or normalise them in "
        "the network before the first layer.",
        Verdict.EXPLODING if bites else None,
    )


def _bites(case: Case) -> str:
    """What large inputs have done to the network, empty if nothing that is known."""
    known, level = losses(case), chance(case)
    if known and level > 0 and known[0] > limits.LOSS_AT_START * level:
        return f"the loss begins at {known[0] / level:.0f} times that of a constant prediction"
    for i, tensor in case.columns("activation"):
        if case.largest("saturated_fraction", i) >= limits.SATURATED_SHARE:
            return f"{tensor.name} is saturated"
    sizes = logit_sizes(case)
    if len(sizes) and float(sizes[0]) >= limits.LOGITS_LARGE:
        return "the logits are sure of a class before anything was learned"
    return ""


def _numbers(summary: Summary, rms: float) -> dict[str, Evidence]:
    return {
        "rms": Evidence(rms, ""),
        "lowest": Evidence(summary.low, ""),
        "highest": Evidence(summary.high, ""),
    }


def _first_layer(case: Case) -> ModuleInfo | None:
    """The first layer that multiplies its input by a weight."""
    weighted = names(WEIGHTED)
    ran = (i for i in case.structure.modules if i.order >= 0 and i.name not in case.parents)
    return next((info for info in ran if info.type in weighted), None)


def _is_normalised(case: Case, first: ModuleInfo) -> bool:
    """Whether a normalisation ran before the first layer, or takes its output."""
    if f"{first.name}.weight".lstrip(".") in case.structure.scale_invariant:
        return True
    leaves = [i for i in case.structure.modules if i.order >= 0 and i.name not in case.parents]
    until = leaves.index(first) + 2
    return any(is_norm(info.type) for info in leaves[:until])


def _column(case: Case, module: str) -> int:
    return next((i for i, t in case.columns("activation") if t.module == module), -1)


def _size(case: Case, module: str) -> float:
    """The rms of an output in the first recorded step, NaN where unknown."""
    column = _column(case, module)
    if column < 0:
        return math.nan
    values = case.values("rms", column)
    return float(values[0]) if len(values) else math.nan
