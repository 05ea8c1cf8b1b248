"""Causes first: what follows from another finding is folded into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gradscope.diagnosis import limits
from gradscope.diagnosis.verdict import Finding, Severity

_FROM_THE_START = "vanishing from the start"
"""A network that vanishes at its initialisation gives the same for every example; one that comes to
vanish while it collapses does so because it collapses."""

_WHOLE_LAYER = "a layer that is wholly dead"
"""It gives the same for every example. That many units of a layer die may follow as well, where
all examples have come to look alike."""

_EXPLAINED_BY = {
    "collapse": {
        _WHOLE_LAYER,
        "evaluation-mode",
        "gradients-accumulate",
        "non-finite",
        _FROM_THE_START,
    },
    "large-logits": {
        "exploding-forward",
        "input-scale",
        "non-finite",
        "odd-block",
        "updates-too-large",
        "updates-too-small",
    },
    "masked-decay": {"collapse", "evaluation-mode"},
    "vanishing": {"collapse", "evaluation-mode"},
    "constant-output": {
        "constant-input",
        "dead-units",
        "evaluation-mode",
        "input-scale",
        "non-finite",
        "norm-of-one",
        "saturation",
        "softmax-of-one",
        "units-alike",
        "vanishing",
        "zero-gradient",
    },
    "dead-units": {"collapse", "target-scale"},
    "exploding-backward": {"evaluation-mode", "target-scale"},
    "exploding-forward": {"evaluation-mode", "target-scale", "unbounded-loss"},
    "no-gradients": {"disconnected"},
    "non-finite-loss": {"non-finite"},
    "unbounded-loss": {"likelihood-of-logits", "target-range"},
    "updates-too-large": {"target-scale"},
    "updates-too-small": {"evaluation-mode", "odd-block", "odd-layer", "saturation", "vanishing"},
    "zero-gradient": {
        "collapse",
        "non-finite-loss",
        "norm-of-one",
        "softmax-of-one",
        "target-scale",
    },
}
"""Kind -> the errors that make it."""

_WITHOUT_NORM = ("vanishing", "exploding-backward", "exploding-forward", "collapse")
"""What becomes of a network whose batch norm normalises nothing: then that is the error, and speaks
for the verdict of the first of these."""


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that an error among them explains."""
    found = _blamed(list(findings))
    errors = {finding.kind for finding in found if finding.severity is Severity.ERROR}
    if any(f.kind == "vanishing" and f.kind in errors and not f.since for f in found):
        errors.add(_FROM_THE_START)
        errors.discard("collapse")
    if any(f.kind == "dead-units" and f.evidence["dead"].value >= limits.WHOLE for f in found):
        errors.add(_WHOLE_LAYER)
        errors.discard("collapse")
    return [
        finding
        for finding in found
        if not (
            errors & _EXPLAINED_BY.get(finding.kind, set())
            # Any error is a reason not to learn.
            or (finding.kind == "not-learning" and errors - {"not-learning"})
        )
    ]


def _blamed(found: list[Finding]) -> list[Finding]:
    """The same, where norms that normalise nothing are the error if one follows from that."""
    follows = [f for f in found if f.kind in _WITHOUT_NORM and f.severity is Severity.ERROR]
    follows.sort(key=lambda f: _WITHOUT_NORM.index(f.kind))
    return [
        dataclasses.replace(f, severity=Severity.ERROR, verdict=follows[0].verdict)
        if follows and f.kind == "evaluation-mode" and _has_idle_norms(f)
        else f
        for f in found
    ]


def _has_idle_norms(finding: Finding) -> bool:
    """Whether no batch has moved the running statistics of half of its norms or more."""
    norms, idle = (finding.evidence.get(name) for name in ("running statistics", "untouched"))
    return norms is not None and idle is not None and 2 * idle.value >= norms.value
