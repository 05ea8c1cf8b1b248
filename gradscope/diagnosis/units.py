"""Findings on units: dead ones, and saturated ones."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.loss_side import chance, losses, output_module
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.table import RecordedTensor


def dead_units(case: Case) -> Iterator[Finding]:
    """Layers of which most units were zero on every example that was recorded lately."""
    layers = dead = 0
    hit: list[tuple[str, float, bool]] = []
    for i, tensor in case.columns("activation"):
        share = case.values("dead_fraction", i)
        share = share[~share.isnan()]
        if not len(share):
            continue
        layers += 1
        last = share[-1].item()
        if last >= limits.dead_share(_units(tensor)):
            info = case.modules.get(tensor.module)
            hit.append((tensor.name, last, info is None or info.is_cut))
            dead += 1
    if not hit:
        return
    blocking = any(is_cut for _, _, is_cut in hit) or 2 * dead >= layers
    yield Finding(
        "dead-units",
        Severity.ERROR if blocking else Severity.WARNING,
        listed([name for name, _, _ in hit]),
        "Most units of these layers gave zero for every example that was recorded lately: they "
        "pass no gradient and cannot recover.",
        {
            "dead": Evidence(max(share for _, share, _ in hit), "share of units, worst layer"),
            "layers": Evidence(dead, f"of {layers} activations"),
        },
        advice.dead(case),
        Verdict.DEAD if blocking else None,
    )


def saturation(case: Case) -> Iterator[Finding]:
    """Layers of which most outputs lie at a bound of their activation."""
    hit = []
    lasting = False
    for i, tensor in case.columns("activation"):
        # A zero at the lower bound of ReLU6 is no saturation but a unit that is off.
        share = case.values("saturated_fraction", i) - case.values("zero_fraction", i)
        share = share[~share.isnan()]
        if _is_sure(case, tensor):
            continue
        if len(share) and share.mean().item() >= limits.SATURATED_SHARE:
            hit.append((tensor.name, share.mean().item()))
            whole = case.earlier is None and len(share) >= limits.SATURATED_STEPS
            lasting |= whole and share.min().item() >= limits.SATURATED_SHARE
    if hit:
        yield Finding(
            "saturation",
            Severity.ERROR if lasting else Severity.WARNING,
            listed([name for name, _ in hit]),
            "Most outputs of these activations lie at a bound, where the derivative is zero"
            + (", in every recorded step from the first on." if lasting else "."),
            {
                "saturated": Evidence(max(share for _, share in hit), "share of outputs, worst"),
                "layers": Evidence(len(hit), ""),
            },
            advice.saturation(case),
            Verdict.VANISHING if lasting else None,
        )


def _is_sure(case: Case, tensor: RecordedTensor) -> bool:
    """Whether it is the output of a network that has learned: then it is at a bound with reason."""
    known, level = losses(case), chance(case)
    sure = bool(known) and level > 0 and known[-1] < level * limits.SURE
    return sure and tensor.module == output_module(case)


def _units(tensor: RecordedTensor) -> int:
    """Number of units: channels, or features of (batch, time, features)."""
    if len(tensor.shape) < 2:
        return 1
    return tensor.shape[-1] if len(tensor.shape) == 3 else tensor.shape[1]
