"""try_remedies(): which change to a network mends its gradient, by trying each on a copy."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

from torch import nn

from gradscope.diagnosis.flow import gradient_flow, loop_flows
from gradscope.diagnosis.judge import diagnose
from gradscope.errors import ModelError, one_line
from gradscope.probing.loss import Loss
from gradscope.probing.outcomes import Outcome, Remedies
from gradscope.probing.patient import examine
from gradscope.probing.probe import probe
from gradscope.probing.surgery import (
    NotApplicable,
)
from gradscope.probing.treatments import AS_IT_IS, REMEDIES, Remedy
from gradscope.seeding import seeded
from gradscope.trace.table import Trace


def try_remedies(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss | None = None,
    steps: int = 1,
    seed: int = 0,
) -> Remedies:
    """Probe copies of a network with each remedy that fits it, and rank what comes out.

    Args:
        model: any module; it is copied, never changed.
        inputs: as for `probe`.
        targets: as for `probe`.
        loss: as for `probe`.
        steps: as for `probe`.
        seed: as for `probe`, and of new weights.

    Returns:
        The network as it is, the remedies tried, best first, and those that do not fit, with why.

    Raises:
        ModelError: the model cannot be copied, or does not run on the inputs.
    """
    model = getattr(model, "_orig_mod", model)
    measure = partial(
        probe, inputs=inputs, targets=targets, loss=loss, steps=steps, seed=seed, predict=False
    )
    trace = measure(model)
    patient = examine(model, inputs, trace)
    baseline = _outcome(AS_IT_IS, trace)
    tried, unfit = [], []
    for remedy in REMEDIES:
        changed = _copy(model)
        try:
            with seeded(seed):
                remedy.apply(changed, patient)
            tried.append(_outcome(remedy, measure(changed)))
        except NotApplicable as reason:
            unfit.append(_unfit(remedy, str(reason)))
        except ModelError as error:
            unfit.append(_unfit(remedy, f"the changed network does not run: {error}"))
    order = {remedy.name: i for i, remedy in enumerate(REMEDIES)}
    tried.sort(key=lambda o: (0.0 if o.is_settled else max(o.distance, 1e-6), order[o.name]))
    return Remedies(baseline, tuple(tried), tuple(unfit))


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = one_line(error, 200)
        raise ModelError(
            f"{type(model).__name__} cannot be copied, so no remedy can be tried: {reason}; "
            "drop tensors with a history and open files from its attributes"
        ) from error


def _outcome(remedy: Remedy, trace: Trace) -> Outcome:
    """The flow that strays furthest from chi = 1, over depth or over time steps."""
    flows = [gradient_flow(trace), *loop_flows(trace).values()]
    flow = max(flows, key=lambda f: abs(f.accumulated) if math.isfinite(f.slope) else -1.0)
    accumulated = flow.accumulated
    if trace.first_nonfinite() is not None or not flow.blocks:
        accumulated = math.nan
    return Outcome(
        remedy.name,
        remedy.change,
        flow.slope,
        flow.slope_low,
        flow.slope_high,
        accumulated,
        flow.forward_total,
        diagnose(trace).verdict,
    )


def _unfit(remedy: Remedy, reason: str) -> Outcome:
    nan = math.nan
    return Outcome(remedy.name, remedy.change, nan, nan, nan, nan, nan, reason=reason)
