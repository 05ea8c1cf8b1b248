"""Trace -> Diagnosis: findings with a verdict, the evidence and a remedy."""

from __future__ import annotations

from gradscope.diagnosis.case import Case
from gradscope.diagnosis.movement import movement
from gradscope.diagnosis.numbers import where_nonfinite
from gradscope.diagnosis.optimizer import membership, unregistered
from gradscope.diagnosis.outliers import odd_blocks, odd_layers
from gradscope.diagnosis.parameters import disconnected, structural, zero_gradients
from gradscope.diagnosis.rate import learning_rate, updates
from gradscope.diagnosis.trends import growth_and_decay
from gradscope.diagnosis.units import dead_units, saturation
from gradscope.diagnosis.verdict import Diagnosis, Evidence, Finding, Severity, Verdict, decide
from gradscope.trace.table import Trace

__all__ = ["Diagnosis", "Evidence", "Finding", "Severity", "Verdict", "diagnose"]

_SYMPTOMS = (
    where_nonfinite,
    disconnected,
    membership,
    unregistered,
    movement,
    learning_rate,
    dead_units,
    zero_gradients,
    growth_and_decay,
    odd_blocks,
    odd_layers,
    saturation,
    updates,
    structural,
)


def diagnose(trace: Trace) -> Diagnosis:
    """Judge the gradients of a recorded run or probe.

    A network is called sick only when the 95 % interval of its factor per block excludes health
    *and* the factor adds up to one that matters over the depth it has; the limits and where they
    come from stand in `gradscope.diagnosis.limits`.

    Args:
        trace: from `watch` or `probe`, or read from a file.

    Returns:
        The verdict with its findings, worst first; each names where, the numbers and a remedy.

    Example:
        >>> print(gradscope.diagnose(trace))  # doctest: +SKIP
    """
    case = Case(trace)
    return decide([finding for symptom in _SYMPTOMS for finding in symptom(case)])
