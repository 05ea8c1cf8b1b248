"""Findings on the updates: steps too large or too small for the weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.vocabulary import STATISTICS


def updates(case: Case) -> Iterator[Finding]:
    """Steps that are too large or too small for the weights."""
    columns = [
        i
        for i, tensor in case.columns("weight")
        if len(tensor.shape) > 1 and case.largest("weight_norm", i) > 0
    ]
    if not columns:
        return
    ratios = case.trace.values[:, columns, _index("update_ratio")]
    typical = ratios.nanmedian(dim=1).values  # over layers, per step
    typical = typical[torch.isfinite(typical)]
    if len(typical) < limits.MIN_UPDATES:
        return
    highest, middle = typical.max().item(), typical.median().item()
    evidence = {
        "update/weight": Evidence(middle, "median over layers and steps"),
        "largest": Evidence(highest, "median over layers"),
    }
    large = highest >= limits.UPDATE_TOO_LARGE or _jump(case, columns) >= 1
    if large or middle >= limits.UPDATE_LARGE:
        yield Finding(
            "updates-too-large",
            Severity.ERROR if large else Severity.WARNING,
            "optimizer",
            "Each step changes the weights by about their own size or more: what they had learned "
            "is lost."
            if large
            else "The steps are large for the weights.",
            evidence,
            advice.rate(highest, middle),
            Verdict.EXPLODING if large else None,
        )
    elif highest < limits.UPDATE_SMALL:
        rising = highest >= limits.UPDATE_LOST and typical[-1] >= limits.WARM_UP * typical[0]
        small = highest < limits.UPDATE_TOO_SMALL and not rising
        yield Finding(
            "updates-too-small",
            Severity.ERROR if small else Severity.WARNING,
            "optimizer",
            "The steps hardly change the weights"
            + (": no run is long enough to learn with them" if small else "")
            + ("; they grow, as in a warm-up." if rising else "."),
            evidence,
            advice.rate(highest, middle),
            Verdict.VANISHING if small else None,
        )


def _jump(case: Case, columns: list[int]) -> float:
    """Decades by which the typical weight norm grew during the recorded steps."""
    norms = case.trace.values[:, columns, _index("weight_norm")].double().log10()
    growth = (norms - norms[:1]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).median(dim=1).values
    return growth.max().item() if len(growth) else 0.0


def _index(statistic: str) -> int:
    return list(STATISTICS).index(statistic)
