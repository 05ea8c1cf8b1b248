"""Causes first: what follows from another finding is folded into it."""

from __future__ import annotations

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
    "collapse": {_WHOLE_LAYER, "gradients-accumulate", "non-finite", _FROM_THE_START},
    "large-logits": {
        "exploding-forward",
        "input-scale",
        "non-finite",
        "odd-block",
        "updates-too-large",
        "updates-too-small",
    },
    "masked-decay": {"collapse"},
    "vanishing": {"collapse"},
    "constant-output": {
        "constant-input",
        "dead-units",
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
    "exploding-backward": {"target-scale"},
    "exploding-forward": {"target-scale", "unbounded-loss"},
    "no-gradients": {"disconnected"},
    "non-finite-loss": {"non-finite"},
    "unbounded-loss": {"likelihood-of-logits", "target-range"},
    "updates-too-large": {"target-scale"},
    "updates-too-small": {"odd-block", "odd-layer", "saturation", "vanishing"},
    "zero-gradient": {
        "collapse",
        "non-finite-loss",
        "norm-of-one",
        "softmax-of-one",
        "target-scale",
    },
}
"""Kind -> the errors that make it."""


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that an error among them explains."""
    found = list(findings)
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
