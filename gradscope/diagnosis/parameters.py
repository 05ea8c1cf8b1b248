"""Findings on parameters without a gradient, and why: cut off, unused, zero by construction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.diagnosis import advice, limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.movement import underflowing
from gradscope.diagnosis.optimizer import held
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict


def disconnected(case: Case) -> Iterator[Finding]:
    """Parameters whose module ran but that never got a gradient, and those that never ran."""
    parents = {name.rpartition(".")[0] for name in case.modules if name}
    trained = held(case)
    left = [n for n in case.structure.unused if trained and n not in trained]
    frozen = set(case.structure.frozen)
    unused = [name for name in case.structure.unused if name not in left]
    aside = set(case.structure.aside)
    cut: list[str] = []
    ignored: list[str] = []
    for i, tensor in case.columns("weight"):
        known = tensor.name in frozen or tensor.name in case.structure.unused
        if known or len(case.values("norm", i)):
            continue
        if trained and tensor.name not in trained:
            left.append(tensor.name)
            continue
        if tensor.module in aside:
            ignored.append(tensor.name)
            continue
        ran = tensor.module in case.modules and case.modules[tensor.module].order >= 0
        # That a leaf ran means that its parameters took part; a container may just hold a leftover.
        (cut if ran and tensor.module not in parents else unused).append(tensor.name)
    if cut and case.trace.steps:
        yield Finding(
            "disconnected",
            Severity.ERROR,
            listed(cut),
            "These parameters took part in the forward pass and get no gradient: the graph is cut "
            "between them and the loss.",
            {"parameters": Evidence(len(cut), "without a gradient")},
            advice.disconnected(),
            Verdict.DISCONNECTED,
        )
    if ignored:
        yield Finding(
            "unused-output",
            Severity.WARNING,
            listed(ignored),
            "These parameters lead only to outputs of the network that the loss does not use.",
            {"parameters": Evidence(len(ignored), "without a gradient")},
            "Add these outputs to the loss, or switch their heads off.",
        )
    if unused:
        yield Finding(
            "unused",
            Severity.WARNING,
            listed(unused),
            "These parameters never took part in the forward pass.",
            {"parameters": Evidence(len(unused), "unused")},
            "Remove them, or call their module; they cost memory and optimizer state.",
        )

    if left:
        yield Finding(
            "not-trained",
            Severity.INFO,
            listed(left),
            "These parameters get no gradient and are in no optimizer, as those of a teacher or of "
            "a target network.",
            {"parameters": Evidence(len(left), "neither with a gradient nor in an optimizer")},
        )


def zero_gradients(case: Case) -> Iterator[Finding]:
    """Gradients that arrive and are exactly zero, where nothing else explains it."""
    if any(underflowing(case)):
        return
    zero, alive = [], 0
    for i, tensor in case.columns("weight"):
        norms = _arrived(case, i)
        if len(norms) and len(tensor.shape) > 1 and tensor.name not in case.structure.cancelled:
            if bool((norms == 0).all()):
                zero.append((tensor.order, tensor.name))
            else:
                alive += 1
    if not zero:
        return
    names = [name for _, name in zero]
    gates = [i for i in _zero_weights(case) if case.trace.tensors[i].order >= min(zero)[0]]
    shut = _shut(case, gates)
    evidence = {"parameters": Evidence(len(zero), "with a gradient of exactly zero")}
    if shut:
        yield Finding(
            "zero-initialised",
            Severity.ERROR,
            listed(shut),
            "These weights start at zero, and so does what multiplies them: each one's gradient "
            "is a product with the other, exactly zero, so that neither can ever move.",
            evidence,
            "Initialise one of the factors at random (kaiming_uniform_) and only the other with "
            "zeros, after all layers have been added.",
            Verdict.DEAD,
        )
    elif gates:
        yield Finding(
            "zero-initialised",
            Severity.INFO,
            listed([case.trace.tensors[i].name for i in gates]),
            f"These weights start at zero, so that nothing reaches {listed(names)} in the first "
            "step; it opens once they have moved.",
            evidence,
            "" if len(case.trace.steps) > 1 else "Record a few steps to see the flow below them.",
        )
    elif 4 * len(zero) >= len(zero) + alive and not _underflow(case):
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


def structural(case: Case) -> Iterator[Finding]:
    """Zeros that the structure of the network makes; never an alarm."""
    if case.structure.cancelled:
        names = list(case.structure.cancelled)
        yield Finding(
            "structural-zero",
            Severity.INFO,
            listed(names),
            "These biases are subtracted again by the normalisation after them: their true "
            "gradient is zero, what is measured is rounding.",
            {"parameters": Evidence(len(names), "cancelled")},
            "Build their layers with bias=False.",
        )
    if case.structure.frozen:
        names = list(case.structure.frozen)
        yield Finding(
            "frozen",
            Severity.INFO,
            listed(names),
            "These parameters have requires_grad=False.",
            {"parameters": Evidence(len(names), "frozen")},
        )


def _zero_weights(case: Case) -> list[int]:
    """Columns of weights and scales that were zero when they were first seen."""
    found = []
    for i, tensor in case.columns("weight"):
        norms = case.values("weight_norm", i)
        if "bias" not in tensor.parameter and len(norms) and norms[0].item() == 0:
            found.append(i)
    return found


def _shut(case: Case, gates: list[int]) -> list[str]:
    """Weights of zero with a gradient of zero that no other weight of zero can open.

    One with a gradient will move, and may open those before it: a step for each. Where there is
    none, or where enough steps have passed, what is still zero stays so.
    """
    zero = [i for i in gates if bool((_arrived(case, i) == 0).all())]
    zero = [i for i in zero if case.values("weight_norm", i)[-1].item() == 0]
    moved = any(case.largest("update_ratio", i) > 0 for i, _ in case.columns("weight"))
    enough = moved and len(case.trace.steps) > max(limits.MIN_UPDATES, min(len(gates), 8))
    return [case.trace.tensors[i].name for i in zero] if enough or len(zero) == len(gates) else []


def _arrived(case: Case, column: int) -> Tensor:
    """Norms of a gradient as backward made it: what is zeroed later did arrive."""
    return torch.fmax(case.values("norm", column), case.values("unclipped_norm", column))


def _underflow(case: Case) -> bool:
    """Whether a steep decay explains zeros: the gradient fell below what float32 can hold."""
    flows = [case.flow, *case.loops.values()]
    return any(flow.log10_grad and min(flow.log10_grad) < -15 for flow in flows)
