"""Findings on the numbers themselves: NaN and Inf."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.movement import broken_by_step
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.vocabulary import STATISTICS


def where_nonfinite(case: Case) -> Iterator[Finding]:
    """NaN or Inf: the first step, and in it the first tensor in the order of computation."""
    if case.skipped:
        taken = len(case.trace.steps)
        most = case.skipped >= max(limits.MIN_SKIPPED, taken)
        yield Finding(
            "skipped-steps",
            Severity.ERROR if most else Severity.INFO,
            "optimizer",
            "The GradScaler skips most steps, however small it makes the loss scale: the gradients "
            "hold NaN or Inf, and the weights hardly move."
            if most
            else "The GradScaler skipped steps whose scaled gradients overflowed, as it should.",
            {"skipped": Evidence(case.skipped, "steps"), "taken": Evidence(taken, "steps")},
            "Look for what makes NaN or Inf in the forward pass or the loss, without the scaler."
            if most
            else "",
            Verdict.STALLED if most else None,
        )
    first = case.trace.first_nonfinite()
    if first is None:
        return
    by_step = broken_by_step(case)
    if by_step is not None:
        yield by_step
        return
    share = case.trace.values[:, :, _index("nonfinite_fraction")] > 0
    reached = [i for i, _ in case.columns("weight") if bool(share[:, i].any())]
    what = {
        "activation": "the output of this module",
        "activation_grad": "the gradient at the output of this module",
        "weight": "the gradient of this parameter",
    }[first.tensor.kind]
    yield Finding(
        "non-finite",
        Severity.ERROR if reached else Severity.WARNING,
        first.tensor.name,
        f"NaN or Inf first appears in {what}"
        + ("." if reached else ", and reaches no gradient of a parameter."),
        {
            "step": Evidence(first.step, ""),
            "parameters": Evidence(len(reached), "with non-finite gradients"),
        },
        advice.non_finite(case, first),
        Verdict.NON_FINITE if reached else None,
    )


def _index(statistic: str) -> int:
    return list(STATISTICS).index(statistic)
