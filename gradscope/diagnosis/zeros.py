"""Findings on gradients that arrive and are exactly zero, and on weights that start at zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.loss_side import output_module
from gradscope.diagnosis.movement import underflowing
from gradscope.diagnosis.optimizer import table
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.table import RecordedTensor


class _Zeros(NamedTuple):
    """Parameters by what is zero of them, as (order, name)."""

    gradients: list[tuple[int, str]]
    """Weights whose gradient is exactly zero in every step."""
    alive: int
    """How many weights have another gradient."""
    open: list[tuple[int, str]]
    """Weights and scales that started at zero and get a gradient: they move, and open."""
    stuck: list[tuple[int, str]]
    """Those that were zero in every step and get none."""
    known: bool
    """Whether the norms of weights were recorded at all."""


def zero_gradients(case: Case) -> Iterator[Finding]:
    """Gradients that arrive and are exactly zero, where nothing else explains it."""
    zeros = _read(case)
    if not zeros.gradients or any(underflowing(case)) or _is_done(case):
        return
    if _from_loss(case):
        yield Finding(
            "zero-gradient",
            Severity.ERROR,
            "loss",
            "The loss gives the output of the network a gradient of exactly zero in every recorded "
            "step: nothing is learned.",
            {"parameters": Evidence(len(zeros.gradients), "with a gradient of exactly zero")},
            advice.silent_loss(),
            Verdict.DEAD,
        )
        return
    names = [name for _, name in zeros.gradients]
    first = min(zeros.gradients)[0]
    gates = [name for order, name in zeros.open if order >= first]
    evidence = {"parameters": Evidence(len(names), "with a gradient of exactly zero")}
    if zeros.stuck and not _may_open(case, zeros):
        yield Finding(
            "zero-initialised",
            Severity.ERROR,
            listed([name for _, name in zeros.stuck]),
            "These weights start at zero and stand behind each other: the gradient of each is "
            "proportional to another that is zero, so that none of them ever moves.",
            evidence,
            advice.zero_factors(),
            Verdict.DEAD,
        )
    elif gates:
        yield Finding(
            "zero-initialised",
            Severity.INFO,
            listed(gates),
            f"These weights start at zero, so that nothing reaches {listed(names)} in the first "
            "step; it opens once they have moved.",
            evidence,
            "" if len(case.trace.steps) > 1 else "Record a few steps to see the flow below them.",
        )
    elif not zeros.known and len(case.trace.steps) == 1:
        yield Finding(
            "zero-gradient",
            Severity.WARNING,
            listed(names),
            "The gradient is exactly zero in the one recorded step; whether a weight that starts "
            "at zero explains it was not recorded.",
            evidence,
            "Record a few steps, or with norms_only=False.",
            Verdict.INCONCLUSIVE,
        )
    elif _blocks(case, zeros) and not _underflow(case):
        yield Finding(
            "zero-gradient",
            Severity.ERROR,
            listed(names),
            "The gradient arrives and is exactly zero in every recorded step.",
            evidence,
            advice.dead(case),
            Verdict.DEAD,
        )
    else:
        yield Finding(
            "zero-gradient",
            Severity.WARNING,
            listed(names),
            "The gradient of these weights is exactly zero in every recorded step.",
            evidence,
        )


def _is_done(case: Case) -> bool:
    """Whether the loss fell to zero before this stretch of a run, as one with a margin may."""
    if case.earlier is None:
        return False
    before = [s.loss for s in case.earlier.steps if s.loss is not None]
    now = [s.loss for s in case.trace.steps if s.loss is not None]
    fell = bool(before) and 0 <= before[-1] < limits.SURE * before[0]
    return fell and bool(now) and not any(now)


def _from_loss(case: Case) -> bool:
    """Whether the gradient is zero where it enters the network."""
    columns = [i for i, t in case.columns("activation_grad") if t.module == output_module(case)]
    norms = [case.values("norm", i) for i in columns]
    return any(len(n) for n in norms) and all(bool((n == 0).all()) for n in norms)


def _read(case: Case) -> _Zeros:
    zeros = _Zeros([], 0, [], [], known=False)
    if not case.trace.steps:
        return zeros
    columns = list(case.columns("weight"))
    places = [i for i, _ in columns]
    norms = table(case, "weight_norm", places)
    arrived = case.trace.present[:, places]
    known = arrived & ~norms.isnan()
    # As backward made them: what was zeroed later did arrive.
    grads = torch.fmax(table(case, "norm", places), table(case, "unclipped_norm", places))
    came = arrived.any(dim=0)
    silent = came & ((grads == 0) | ~arrived).all(dim=0)
    first = norms.gather(0, known.int().argmax(dim=0, keepdim=True))[0]
    facts = zip(
        columns, came.tolist(), silent.tolist(), (first == 0).tolist(),
        (known.any(dim=0) & ((norms == 0) | ~known).all(dim=0)).tolist(), strict=True,
    )  # fmt: skip
    alive = 0
    for (_, tensor), has_grad, is_silent, began_zero, stayed_zero in facts:
        at = (_used_at(case, tensor), tensor.name) if is_silent or began_zero else (0, "")
        if len(tensor.shape) > 1 and has_grad and tensor.name not in case.structure.cancelled:
            zeros.gradients.extend([at] if is_silent else [])
            alive += not is_silent
        if "bias" not in tensor.parameter and began_zero:
            if not is_silent:
                zeros.open.append(at)
            elif stayed_zero:
                zeros.stuck.append(at)
    return zeros._replace(alive=alive, known=bool(known.any()))


def _used_at(case: Case, tensor: RecordedTensor) -> int:
    """Where a parameter comes in: one of a module with parts, as a class token, before its parts.

    Its place is not known; that of the module is where it ends, behind all that reads the token.
    """
    return min(tensor.order, case.first_part.get(tensor.module, tensor.order))


def _may_open(case: Case, zeros: _Zeros) -> bool:
    """Whether weights that are stuck may still move, once one after them that is open has.

    Where the open ones have moved in the recorded steps and those are still stuck, they do not.
    """
    first = min(zeros.stuck)[0]
    after = [name for order, name in zeros.open if order >= first]
    if not after:
        return False
    moved = False
    for i, tensor in case.columns("weight"):
        norms = case.values("weight_norm", i)
        moved |= tensor.name in after and len(norms) > 2 and norms[-1].item() > 0
    return not moved


def _blocks(case: Case, zeros: _Zeros) -> bool:
    """Whether what gets no gradient keeps the network from training.

    A quarter of the weights, one of them on a path that nothing leads around, or half of them
    anywhere; a part that a mask or a router passed by is neither.
    """
    count = len(zeros.gradients)
    owners = {name.rpartition(".")[0] for _, name in zeros.gradients}
    known = [case.modules[name] for name in owners if name in case.modules]
    on_trunk = len(known) < len(owners) or any(info.is_cut for info in known)
    total = count + zeros.alive
    return 4 * count >= total if on_trunk else 2 * count >= total


def _underflow(case: Case) -> bool:
    """Whether a steep decay explains zeros: the gradient fell below what float32 can hold."""
    flows = [case.flow, *case.loops.values()]
    return any(flow.log10_grad and min(flow.log10_grad) < -15 for flow in flows)
