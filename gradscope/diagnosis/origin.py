"""Where NaN or Inf began: in the weights, in a forward pass, at the loss, or in a backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case
from gradscope.diagnosis.optimizer import group_of
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import Summary
from gradscope.trace.table import RecordedTensor
from gradscope.trace.vocabulary import place_of


@dataclass(frozen=True)
class _Origin:
    """The place where NaN or Inf was made, and why, as far as the record tells."""

    where: str
    message: str
    remedy: str


def where_nonfinite(case: Case) -> Iterator[Finding]:
    """NaN or Inf: when it began, and where it was made rather than where it went."""
    if case.skipped:
        taken = len(case.trace.steps)
        most = case.skipped >= max(limits.MIN_SKIPPED, taken)
        yield Finding(
            "skipped-steps",
            Severity.ERROR if most else Severity.INFO,
            "optimizer",
            "The GradScaler skips most steps, however small it makes the loss scale: the gradients "
            "hold NaN or Inf, and the weights hardly move."
            if most
            else "The GradScaler skipped steps whose scaled gradients overflowed, as it should.",
            {"skipped": Evidence(case.skipped, "steps"), "taken": Evidence(taken, "steps")},
            advice.skipped() if most else "",
            Verdict.STALLED if most else None,
        )
    broken = _broken(case)
    rows = broken.any(dim=1).nonzero().flatten().tolist()
    if not rows:
        return
    row = rows[0]
    reached = [i for i, _ in case.columns("weight") if bool(broken[:, i].any())]
    origin = _origin(case, broken[row], row)
    step = case.trace.steps[row].step
    before = case.trace.steps[row - 1].step if row else None
    gap = before is not None and step - before > 1
    harmless = "" if reached else " It reaches no gradient of a parameter."
    yield Finding(
        "non-finite",
        Severity.ERROR if reached else Severity.WARNING,
        origin.where,
        origin.message + harmless,
        {
            "step": Evidence(step, f"; finite at step {before}" if gap else ""),
            "parameters": Evidence(len(reached), "with non-finite gradients"),
        },
        origin.remedy,
        Verdict.NON_FINITE if reached else None,
        since=step,
    )


def _broken(case: Case) -> Tensor:
    """Which tensors held NaN or Inf; bool of shape (steps, tensors)."""
    share = case.trace.values[:, :, place_of("nonfinite_fraction")] > 0
    norm = case.trace.values[:, :, place_of("norm")]
    return (share | norm.isinf()) & case.trace.present


def _origin(case: Case, broken: Tensor, row: int) -> _Origin:
    """The first cause in the order of a step: weights, forward pass, loss, backward pass."""
    sparse = row > 0 and case.trace.steps[row].step - case.trace.steps[row - 1].step > 1
    weights = _broken_weights(case, row)
    if weights:
        return _by_optimizer(case, row, weights, sparse=sparse)
    module = _first_output(case, broken)
    if module is not None:
        return _by_forward(case, module, first=row == 0)
    loss = case.trace.steps[row].loss
    if loss is not None and not math.isfinite(loss):
        return _by_loss(case)
    return _by_backward(case, broken, row, loss_known=loss is not None)


def _broken_weights(case: Case, row: int) -> list[str]:
    """Parameters that were NaN or Inf before the forward pass of a step."""
    norms = case.trace.values[row, :, place_of("weight_norm")]
    known = case.trace.values[:, :, place_of("weight_norm")].isfinite().any(dim=0)
    seen = case.trace.present[row]
    return [
        tensor.name
        for i, tensor in case.columns("weight")
        # NaN stands for "not measured" too: a weight whose norm was known before is now broken.
        if bool(seen[i]) and bool(norms[i].isinf() | (norms[i].isnan() & known[i]))
    ]


def _by_optimizer(case: Case, row: int, weights: list[str], *, sparse: bool) -> _Origin:
    if sparse:
        span = f"between steps {case.trace.steps[row - 1].step} and {case.trace.steps[row].step}"
        return _Origin(
            "optimizer",
            f"The weights became NaN or Inf {span}, which were not recorded: where it began "
            "cannot be told.",
            advice.watch_closely(case.trace.steps[row - 1].step),
        )
    where = weights[0] if len(weights) == 1 else "optimizer"
    half = any(_divides_by_zero(case, t) for _, t in case.columns("weight"))
    return _Origin(
        where,
        "The step of the optimizer made the weights NaN or Inf: their gradients were finite, the "
        "weights after it are not."
        + (
            " In float16 an eps of 1e-8 is zero, and so are the squares of small gradients: the "
            "update divides by zero."
            if half
            else ""
        ),
        advice.broken_step(half=half),
    )


def _divides_by_zero(case: Case, weight: RecordedTensor) -> bool:
    """Whether the eps that a weight is stepped with is zero in its type, or may be."""
    group = group_of(case, weight.name)
    eps = group.settings.get("eps", math.inf) if group is not None else 0.0
    return weight.dtype == "float16" and eps <= limits.LEAST_HALF / 2


def _first_output(case: Case, broken: Tensor) -> str | None:
    """The module whose output was the first to hold NaN or Inf."""
    for i, tensor in case.columns("activation"):
        if bool(broken[i]):
            return tensor.module
    return None


def _by_forward(case: Case, module: str, *, first: bool) -> _Origin:
    name = module or "(root)"
    info = case.modules.get(module)
    inputs = [summary for summary in case.structure.inputs if _is_broken(summary)]
    if first and inputs:
        return _Origin(
            inputs[0].name, "The input of the network holds NaN or Inf.", advice.broken_input()
        )
    if info is not None and module in case.parents:
        message = (
            f"Code of {name} itself makes NaN or Inf in its forward pass: what its parts gave was "
            "finite."
        )
    else:
        message = (
            f"{name} makes NaN or Inf in its forward pass: the outputs before it and all weights "
            "are finite."
        )
    return _Origin(name, message, advice.broken_forward(name, late=not first))


def _by_loss(case: Case) -> _Origin:
    known = case.structure.loss
    divides = known is not None and any("Div" in name for name in known.operations)
    how = " It divides: 0/0 where a batch holds nothing to divide by." if divides else ""
    return _Origin(
        "loss",
        f"The loss itself is NaN or Inf, from finite outputs of the network.{how}",
        advice.broken_loss(),
    )


def _by_backward(case: Case, broken: Tensor, row: int, *, loss_known: bool) -> _Origin:
    """Outputs and loss are finite: which module's backward pass made it."""
    seen = case.trace.present[row]
    gradients = [(i, t) for i, t in case.columns("activation_grad") if bool(seen[i])]
    bad = [(i, t) for i, t in gradients if bool(broken[i])]
    good = [(i, t) for i, t in gradients if not bool(broken[i])]
    if not bad:
        first = next((t.name for i, t in case.columns("weight") if bool(broken[i])), "")
        return _Origin(
            first,
            "The gradient of this parameter is NaN or Inf although the gradients at all outputs "
            "are finite: its own backward pass, or a hook on it, made it.",
            advice.broken_backward(()),
        )
    last = max(bad, key=lambda item: item[1].order)[1]
    after = [t for _, t in good if t.order > last.order]
    if not after:
        told = "the loss is finite" if loss_known else "the outputs of the network are finite"
        return _Origin(
            "loss",
            f"The gradient that the loss gives to {last.module or 'the network'} is NaN or Inf, "
            f"while {told}: the backward pass of the loss made it.",
            advice.broken_loss(),
        )
    name = min(after, key=lambda t: t.order).module
    maker = case.modules.get(name)
    operations = maker.operations if maker is not None else ()
    name = name or "(root)"
    where = any(operation.startswith("Where") for operation in operations)
    message = (
        f"The backward pass of {name} makes NaN or Inf: the gradient behind it is finite, the one "
        "it passes on is not."
    )
    if where:
        message += (
            " It chooses by torch.where, which computes both branches: an infinite derivative in "
            "the branch that is not taken times zero is NaN."
        )
    return _Origin(name, message, advice.broken_backward(operations))


def _is_broken(given: Summary) -> bool:
    """Whether an input that was measured held NaN or Inf."""
    return bool(given.shape) and not math.isfinite(given.mean)
