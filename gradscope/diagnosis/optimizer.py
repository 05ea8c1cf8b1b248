"""Findings on what the optimizer holds: gradients that nobody steps, leaves that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import ParameterGroup
from gradscope.trace.vocabulary import place_of


def group_of(case: Case, name: str) -> ParameterGroup | None:
    """The group of an optimizer that holds a parameter."""
    return next((group for group in case.structure.groups if name in group.parameters), None)


def stepped(case: Case) -> list[int]:
    """Columns of the parameters that the optimizers hold; of all where no optimizer is known."""
    known = bool(case.structure.groups)
    return [i for i, t in case.columns("weight") if not known or t.name in case.held]


def table(case: Case, statistic: str, columns: list[int]) -> Tensor:
    """One statistic of some tensors; shape (steps, tensors), NaN where not measured."""
    return case.trace.values[:, columns, place_of(statistic)]


def rates(case: Case, *, from_start: bool = False) -> list[tuple[int, float]]:
    """Step and the largest learning rate of all groups at it; empty where it is not known.

    Args:
        case: a run or a stretch of one.
        from_start: give those of the steps before the stretch too.
    """
    earlier = case.earlier.steps if from_start and case.earlier is not None else ()
    steps = {step.step for step in (*earlier, *case.trace.steps)}
    found: dict[int, float] = {}
    for name, series in case.trace.logged.items():
        if name.startswith("lr/"):
            for step, rate in series:
                if step in steps:
                    found[step] = max(rate, found.get(step, 0.0))
    return sorted(found.items())


def rate_of(case: Case, name: str) -> float:
    """The largest learning rate that a parameter was stepped with; 1 where it is not known."""
    steps = {step.step for step in case.trace.steps}
    for i, group in enumerate(case.structure.groups):
        if name in group.parameters:
            series = case.trace.logged.get(f"lr/{i}", ())
            return max((rate for step, rate in series if step in steps), default=1.0)
    return 1.0


def lowered(case: Case) -> float:
    """Factor by which a schedule lowered the learning rate before this stretch of a run; 1 or more.

    What is small because the rate was lowered is the schedule's doing.
    """
    now = max((rate for _, rate in rates(case)), default=0.0)
    if case.earlier is None or not now:
        return 1.0
    before = [rate for name, s in case.trace.logged.items() if name[:3] == "lr/" for _, rate in s]
    return max(before) / now


def membership(case: Case) -> Iterator[Finding]:
    """Gradients of parameters that no optimizer holds and that nothing else moves."""
    if not case.structure.groups:
        return
    left, standing = [], True
    for i, tensor in case.columns("weight"):
        if tensor.name not in case.held and case.largest("norm", i) > 0:
            moved = _moved(case, i)
            if moved is not True:  # another optimizer, or a copy that it is copied from, has it
                left.append(tensor.name)
                standing = standing and moved is False
    if not left:
        return
    strangers = sum(group.strangers for group in case.structure.groups)
    evidence = {"parameters": Evidence(len(left), "with a gradient and in no optimizer")}
    if strangers:
        evidence["others"] = Evidence(strangers, "parameters in the optimizer that are not these")
    # Who holds copies writes them back; that they did not move is what proves the fault.
    certain = standing or (not strangers and len(case.trace.steps) > 1)
    yield Finding(
        "not-in-optimizer",
        Severity.ERROR if certain else Severity.WARNING,
        listed(left),
        "These parameters get a gradient and are not in the optimizer, so that no step moves them."
        if case.held
        else "The optimizer holds none of the parameters of this network: it steps others, and "
        "what is recorded here never moves.",
        evidence,
        "Build the optimizer from the parameters of the whole network, after its layers have their "
        "final form, or add these with optimizer.add_param_group(); if they are meant to stay as "
        "they are, set requires_grad_(False).",
        None if not certain else Verdict.STALLED if case.held else Verdict.INCONCLUSIVE,
    )


def unregistered(case: Case) -> Iterator[Finding]:
    """Leaves that the network computes with and that are no parameters of it."""
    strangers = list(case.structure.strangers)
    if not strangers:
        return
    known = bool(case.structure.groups)
    yield Finding(
        "unregistered",
        Severity.ERROR if known else Severity.WARNING,
        listed(strangers),
        "The network computes with these weights, but they are not registered: they are no "
        "parameters of the model, "
        + ("no optimizer steps them, " if known else "")
        + "and what they do cannot be recorded.",
        {"kinds": Evidence(len(strangers), "of weights that are not part of the model")},
        "Keep layers in nn.ModuleList or nn.ModuleDict instead of a Python list or dict, and "
        "tensors in nn.Parameter, so that the model registers them; run networks that are meant to "
        "stay apart under torch.no_grad().",
        Verdict.INCONCLUSIVE,
    )


def _moved(case: Case, column: int) -> bool | None:
    """Whether a parameter changed between two recorded steps; None where that is not known."""
    norms = case.values("weight_norm", column)
    norms = norms[~norms.isnan()]
    if len(norms) < 2:
        return None
    return not torch.equal(norms, norms[:1].expand_as(norms))
