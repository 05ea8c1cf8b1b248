"""Causes first: what follows from another finding is folded into it."""

from __future__ import annotations

from collections.abc import Iterable

from gradscope.diagnosis.verdict import Finding, Severity

_EXPLAINED_BY = {
    "collapse": {"dead-units", "non-finite"},
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
    "non-finite-loss": {"non-finite"},
    "zero-gradient": {"norm-of-one", "softmax-of-one"},
}
"""Kind -> the errors that make it."""


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that an error among them explains."""
    found = list(findings)
    errors = {finding.kind for finding in found if finding.severity is Severity.ERROR}
    return [
        finding
        for finding in found
        if not (
            errors & _EXPLAINED_BY.get(finding.kind, set())
            # Any error is a reason not to learn.
            or (finding.kind == "not-learning" and errors - {"not-learning"})
        )
    ]
