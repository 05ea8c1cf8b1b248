"""Findings on what happens to a gradient between the backward pass and the updated weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.gates import behind_gates
from gradscope.diagnosis.optimizer import lowered, rate_of, stepped, table
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict

_SCALE_FREE = {
    "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam", "RMSprop", "Adagrad", "Adadelta",
    "Adafactor", "Rprop", "Muon",
}  # fmt: skip
"""Optimizers of torch whose step does not depend on the scale of the gradient."""

_PLAIN = {*_SCALE_FREE, "SGD", "ASGD", "LBFGS"}
"""Optimizers of torch: none of them remembers what rounding took from a weight."""

_HALF = {"float16", "bfloat16"}


def movement(case: Case) -> Iterator[Finding]:
    """What stands between the gradients and the weights."""
    for find in (_accumulating, _zeroed, _clipped, _lost, underflowing, _standing):
        yield from find(case)


def _accumulating(case: Case) -> Iterator[Finding]:
    """Gradients that were not empty when backward began: zero_grad() is missing."""
    carried = table(case, "carried_norm", stepped(case))
    looks = carried[~carried.isnan().all(dim=1)]
    if case.earlier is None:
        looks = looks[1:]  # before the first backward pass all are empty
    if len(looks) < limits.MIN_UPDATES - 1:
        return
    full = _share(looks > 0, ~looks.isnan()) >= 0.5
    share = full.float().mean().item()
    if share < 0.5:
        return
    yield Finding(
        "gradients-accumulate",
        Severity.ERROR,
        "optimizer",
        "The gradients were not empty when the backward pass began: each step uses the sum of "
        "those of all batches so far.",
        {
            "steps": Evidence(share, "share of steps that began with old gradients"),
            "looked at": Evidence(len(looks), "steps"),
        },
        "Call optimizer.zero_grad() before each backward pass, or after each step; to accumulate "
        "over micro-batches on purpose, step once after the last of them.",
        Verdict.EXPLODING,
    )


def _zeroed(case: Case) -> Iterator[Finding]:
    """Gradients that backward made and that are gone when the optimizer takes them."""
    if case.is_cut_at_loss:
        return
    if case.has_no_gradient and case.trace.steps and case.earlier is None:
        yield Finding(
            "zeroed-before-step",
            Severity.ERROR,
            "optimizer",
            "No parameter has a gradient when the optimizer steps: step() comes before backward(), "
            "or zero_grad() stands between the two.",
            {"steps": Evidence(len(case.trace.steps), "without any gradient")},
            "Call zero_grad(), backward() and step() in this order.",
            Verdict.STALLED,
        )
        return
    columns = stepped(case)
    before, after = (table(case, name, columns) for name in ("unclipped_norm", "norm"))
    made = before > 0
    gone = made & (after == 0)
    if not bool(made.any()) or gone.sum() < 0.9 * made.sum():
        return
    yield Finding(
        "zeroed-before-step",
        Severity.ERROR,
        "optimizer",
        "The backward pass makes gradients, and they are zero when the optimizer takes them: the "
        "weights do not move.",
        {"gone": Evidence((gone.sum() / made.sum()).item(), "share of gradients and steps")},
        "Call zero_grad() before backward() or after step(), never between the two.",
        Verdict.STALLED,
    )


def _clipped(case: Case) -> Iterator[Finding]:
    """Gradients cut to a small part at nearly every step, and steps that are small with them."""
    columns = [i for i in stepped(case) if len(case.trace.tensors[i].shape) > 1]
    if not columns:
        return
    before, after = (table(case, name, columns) for name in ("unclipped_norm", "norm"))
    known = (before > 0) & (after > 0) & before.isfinite() & after.isfinite()
    factors = torch.where(known, after / before, torch.nan)
    typical = factors.nanmedian(dim=1).values
    typical = typical[~typical.isnan()]
    if len(typical) < limits.MIN_UPDATES or typical.quantile(0.9) > limits.CLIPPED:
        return
    if _is_unscaled(factors):
        return
    factor = typical.median().item()
    update = _typical(table(case, "update_ratio", columns))
    small = _is_slow(case, columns, update * lowered(case))
    scale = max((step.loss_scale for step in case.trace.steps), default=1.0)
    scaled = scale > 1 and factor * scale < 1 / limits.CLIPPED
    if not small and not scaled:
        return
    yield Finding(
        "clipped",
        Severity.ERROR if small else Severity.WARNING,
        "optimizer",
        "The gradients are clipped while they still carry the loss scale: what is left of them is "
        f"1/{1 / factor:.0f}, at nearly every step."
        if scaled
        else f"Clipping cuts the gradients to 1/{1 / factor:.0f} of their size at nearly every "
        "step, so that the weights hardly move.",
        {
            "left": Evidence(factor, "of the gradient norm, median over layers and steps"),
            "update/weight": Evidence(update, "median over layers and steps"),
        },
        "Call scaler.unscale_(optimizer) before clipping."
        if scaled
        else "Raise the clip value to about the usual norm of the gradients, so that only outliers "
        "are clipped, or do not clip.",
        Verdict.STALLED if small else None,
    )


def _lost(case: Case) -> Iterator[Finding]:
    """Updates below half of what the type of the weights can tell apart."""
    columns = [
        i
        for i in stepped(case)
        if case.trace.tensors[i].dtype in _HALF and len(case.trace.tensors[i].shape) > 1
    ]
    if not columns:
        return
    unchanged, zero = (
        table(case, name, columns) for name in ("unchanged_fraction", "zero_fraction")
    )
    moving = table(case, "norm", columns) > 0
    share = torch.where(moving & (zero < 0.99), (unchanged - zero) / (1 - zero), torch.nan)
    share = share.clamp(min=0)
    if (~share.isnan()).any(dim=1).sum() < limits.MIN_UPDATES or not any(_rates(case)):
        return
    if lowered(case) > 2:
        return  # the end of a schedule, where all updates become small
    lost = _typical(share)
    if lost < limits.LOST_SHARE:
        return
    names = [case.trace.tensors[i].name for i in columns]
    types = sorted({case.trace.tensors[i].dtype for i in columns})
    plain = all(group.optimizer in _PLAIN for group in case.structure.groups)
    yield Finding(
        "updates-lost",
        Severity.ERROR if plain else Severity.WARNING,
        listed(names),
        f"The weights are {' and '.join(types)}, and most updates are smaller than half the "
        "distance to the next such number: they are lost in rounding, and the weights stay as they "
        "are." + ("" if plain else " An optimizer that keeps what was rounded away is not harmed."),
        {
            "lost": Evidence(lost, "share of elements with a gradient that did not change"),
            "update/weight": Evidence(
                _typical(table(case, "update_ratio", columns)), "median over layers and steps"
            ),
        },
        "Keep the weights in float32 and compute in half precision under torch.autocast, or use an "
        "optimizer with float32 master weights or stochastic rounding.",
        Verdict.STALLED if plain else None,
    )


def underflowing(case: Case) -> Iterator[Finding]:
    """Gradients of float16 outputs that fall below the smallest float16 number."""
    columns = [i for i, t in case.columns("activation_grad") if t.dtype == "float16"]
    if not columns or any(step.loss_scale > 1 for step in case.trace.steps):
        return
    largest, zero = (table(case, name, columns) for name in ("abs_max", "zero_fraction"))
    known = ~largest.isnan() & ~zero.isnan()
    small = (largest < limits.NORMAL_HALF) & (zero >= limits.UNDERFLOW_SHARE)
    share = _share(small, known)[known.any(dim=1)]
    if not len(share) or share.median() < 0.5:
        return
    hit = _share(small.T, known.T) >= 0.5
    names = [
        case.trace.tensors[i].name for i, bad in zip(columns, hit.tolist(), strict=True) if bad
    ]
    yield Finding(
        "underflow",
        Severity.ERROR,
        listed(names),
        "Gradients at these float16 outputs fall below the smallest float16 number, 6e-08, and "
        "become zero: the loss is not scaled.",
        {
            "zeros": Evidence(_typical(zero), "share of elements, median"),
            "largest": Evidence(_typical(largest), "of one element, median"),
            "outputs": Evidence(len(names), f"of {len(columns)} float16 outputs"),
        },
        "Scale the loss with torch.amp.GradScaler, or compute in bfloat16, which has the range of "
        "float32.",
        Verdict.VANISHING,
    )


def _standing(case: Case) -> Iterator[Finding]:
    """Weights in the optimizer that get a gradient and never move, while others do."""
    waiting = behind_gates(case)
    columns = [
        i
        for i in stepped(case)
        if case.largest("weight_norm", i) > 0
        and case.trace.tensors[i].dtype not in _HALF
        and case.trace.tensors[i].name not in waiting
    ]
    if not case.structure.groups or not columns:
        return
    ratios, grads = (table(case, name, columns) for name in ("update_ratio", "rms"))
    measured = ~ratios.isnan() & (grads > 0)
    still = measured.sum(dim=0).ge(limits.MIN_UPDATES) & ~((ratios > 0) & measured).any(dim=0)
    moves = ratios.nanmedian(dim=0).values >= limits.UPDATE_LOST
    if not bool(moves.any()):
        return  # where nothing moves, the rate is looked at
    sizes = grads.nanmedian(dim=0).values  # a gradient that has vanished moves nothing either
    still &= sizes >= 10**-limits.VANISHING * sizes[moves].median()
    if not bool(still.any()):
        return
    names = [
        case.trace.tensors[i].name for i, bad in zip(columns, still.tolist(), strict=True) if bad
    ]
    without = [name for name in names if not rate_of(case, name)]
    yield Finding(
        "not-moving",
        Severity.WARNING if len(without) == len(names) else Severity.ERROR,
        listed(names),
        "These weights are in the optimizer and get a gradient, and no recorded step moves them"
        + (": the learning rate of their group is 0." if without else ", while others move."),
        {"parameters": Evidence(len(names), f"of {len(columns)} that do not move")},
        "Give their group a learning rate, or set requires_grad_(False) if they are meant to stay."
        if without
        else "Look for what puts them back or keeps the optimizer from them.",
        None if len(without) == len(names) else Verdict.STALLED,
    )


def _rates(case: Case) -> list[float]:
    return [rate_of(case, case.trace.tensors[i].name) for i in stepped(case)]


def _is_slow(case: Case, columns: list[int], update: float) -> bool:
    """Whether the steps are so small that the clipping must be why."""
    kinds = {group.optimizer for group in case.structure.groups}
    if not kinds & _SCALE_FREE:
        return not kinds - _PLAIN and update < limits.UPDATE_CLIPPED
    weights, ratios = (table(case, name, columns) for name in ("weight_norm", "update_ratio"))
    sizes = weights.new_tensor([math.prod(case.trace.tensors[i].shape) for i in columns]).sqrt()
    moved = _typical(ratios * weights / sizes)  # rms of an element's step: for Adam about its rate
    return moved < limits.CLIPPED * max(_rates(case), default=0.0)


def _is_unscaled(factors: Tensor) -> bool:
    """Whether the factor is one power of two for all: a loss scale that was divided out again."""
    exponents = factors[~factors.isnan()].log2()
    return bool((exponents - exponents.round()).abs().max() < 1e-3)


def _share(hits: Tensor, known: Tensor) -> Tensor:
    """Share of hits among what is known, per row."""
    return (hits & known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def _typical(values: Tensor) -> float:
    """Median over steps of the median over tensors, of what is known."""
    if not values.numel():
        return math.nan
    return values.nanmedian(dim=1).values.nanmedian().item()
