"""The finding on logits that are sure of a class before anything was learned."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.loss_side import chance, logit_sizes, losses, output_name
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict


def large_logits(case: Case) -> Iterator[Finding]:
    """Logits so large that the loss begins far above that of a constant prediction.

    What makes them so, a head that is drawn too large, scales the gradient of all layers before it
    alike. It costs the first steps; a fault is it where the loss stays where it began.
    """
    sizes, known, level = logit_sizes(case), losses(case), chance(case)
    if not len(sizes) or not float(sizes[0]) >= limits.LOGITS_LARGE or not (known and level > 0):
        return
    last = statistics.median(known[-(len(known) // 3) :])
    trained = len(known) >= limits.MIN_LOSSES
    if not known[0] > limits.LOSS_AT_START * level or (trained and last < limits.SURE * level):
        return
    steps = case.trace.steps[-1].step - case.trace.steps[0].step + 1
    large = float(sizes[-1]) >= limits.LOGITS_LARGE and steps >= limits.LONG_RUN
    stuck = trained and large and last > limits.HARDLY_LEARNED * known[0]
    yield Finding(
        "large-logits",
        Severity.ERROR if stuck else Severity.WARNING,
        output_name(case),
        "At the first recorded step the logits are so large that the network is sure of classes, "
        "mostly of wrong ones: "
        + (
            "and it has not come away from there, since the loss has not fallen."
            if stuck
            else "the loss begins far above that of a constant prediction, and the first steps go "
            "into making the logits smaller."
        ),
        {
            "rms": Evidence(float(sizes[0]), "of the logits"),
            "loss": Evidence(known[0], "at the first recorded step"),
            "constant": Evidence(level, "the loss of a constant prediction"),
        },
        "Draw the last layer smaller, so that its outputs start around one or below (PyTorch's "
        "default, or normal_ with std 0.01): an initialisation by fan_out draws a head of few "
        "classes too large.",
        Verdict.EXPLODING if stuck else None,
    )
