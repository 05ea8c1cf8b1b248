"""diagnose(): findings on the whole run, on its last stretch, and the verdict they add up to."""

from __future__ import annotations

from gradscope.diagnosis.case import Case
from gradscope.diagnosis.evaluation import evaluation_mode
from gradscope.diagnosis.folding import folded
from gradscope.diagnosis.graph import (
    dropout,
    no_activation,
    one_element,
    softmax_over_batch,
    unscaled_attention,
)
from gradscope.diagnosis.inputs import constant_input, input_scale
from gradscope.diagnosis.logits import large_logits
from gradscope.diagnosis.loss import broken_loss, loss_fit, not_learning, unbounded_loss
from gradscope.diagnosis.movement import movement
from gradscope.diagnosis.optimizer import membership, unregistered
from gradscope.diagnosis.origin import where_nonfinite
from gradscope.diagnosis.outliers import odd_blocks, odd_layers
from gradscope.diagnosis.parameters import disconnected, structural, unused
from gradscope.diagnosis.rate import learning_rate, updates, weight_decay
from gradscope.diagnosis.sight import rests_on, unseen
from gradscope.diagnosis.targets import (
    constant_target,
    target_broadcast,
    target_range,
    target_scale,
)
from gradscope.diagnosis.timeline import Timeline
from gradscope.diagnosis.trends import growth_and_decay
from gradscope.diagnosis.units import dead_units, saturation
from gradscope.diagnosis.variation import collapse, units_alike
from gradscope.diagnosis.verdict import Diagnosis, decide
from gradscope.diagnosis.zeros import zero_gradients
from gradscope.errors import TraceError
from gradscope.trace.table import Trace

_ONCE = (
    where_nonfinite,
    unseen,
    membership,
    unregistered,
    learning_rate,
    weight_decay,
    unused,
    odd_blocks,
    odd_layers,
    structural,
    loss_fit,
    target_range,
    target_broadcast,
    target_scale,
    constant_target,
    broken_loss,
    unbounded_loss,
    not_learning,
    large_logits,
    input_scale,
    constant_input,
    one_element,
    softmax_over_batch,
    unscaled_attention,
    dropout,
    evaluation_mode,
    no_activation,
    units_alike,
    collapse,
)
"""What is judged on all recorded steps together."""

_OVER_TIME = (
    disconnected,
    dead_units,
    zero_gradients,
    growth_and_decay,
    saturation,
    movement,
    updates,
)
"""What is judged on the last stretch as well, and dated."""


def diagnose(trace: Trace) -> Diagnosis:
    """Judge the gradients of a recorded run or probe.

    A network is called sick only when the 95 % interval of its factor per block excludes health
    *and* the factor adds up to one that matters over the depth it has; the limits and where they
    come from stand in `gradscope.diagnosis.limits`. It is called healthy only where outputs and
    gradients were seen; else the verdict is ``inconclusive``, and a finding says what would settle
    it. The last quarter of the recorded steps is judged on its own beside the whole.

    Args:
        trace: from `watch` or `probe`, or read from a file.

    Returns:
        The verdict with its findings, worst first; each names where, since when, the numbers and a
        remedy.

    Raises:
        TraceError: it is no trace.

    Example:
        >>> print(gradscope.diagnose(trace))  # doctest: +SKIP
    """
    if not isinstance(trace, Trace):
        raise TraceError(
            f"diagnose() needs a gradscope.Trace, got {type(trace).__name__}; give scope.trace() "
            "or Trace.load(path)"
        )
    case = Case(trace)
    once = [finding for symptom in _ONCE for finding in symptom(case)]
    return decide(folded([*once, *Timeline(case, _OVER_TIME).findings()]), rests_on(case))
