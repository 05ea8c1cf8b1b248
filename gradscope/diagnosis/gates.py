"""Weights behind a scale that starts near zero and opens: they stand still until it has."""

from __future__ import annotations

import math

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case, is_inside
from gradscope.trace.vocabulary import place_of


def behind_gates(case: Case) -> set[str]:
    """Parameters whose gradient a scale of their own branch still holds back, while it opens.

    LayerScale, ReZero and their kin multiply a branch by a factor for each channel that starts at
    1e-6 or zero. What is in the branch gets that share of the gradient, and under an optimizer
    whose steps go with the gradient it does not move until the factor has grown.
    """
    weighted = {t.module for _, t in case.columns("weight") if len(t.shape) > 1}
    scopes = set()
    for i, tensor in case.columns("weight"):
        size = math.prod(tensor.shape)
        if "bias" in tensor.parameter or size != max(tensor.shape, default=1):
            continue
        norms = case.values("weight_norm", i)
        if len(norms) and _at_first(case, i) <= limits.SHUT * math.sqrt(size):
            grows = norms[-1].item() >= limits.OPENING * norms[0].item()
            if grows or case.largest("update_ratio", i) >= limits.UPDATE_LARGE:
                scopes.add(_branch(tensor.module, weighted))
    return {
        tensor.name
        for _, tensor in case.columns("weight")
        if any(is_inside(tensor.module, scope) for scope in scopes)
    }


def _at_first(case: Case, column: int) -> float:
    """The norm of a parameter when the run began; NaN where it was not recorded."""
    if case.earlier is None or not len(case.earlier.steps):
        return case.values("weight_norm", column)[0].item()
    return case.earlier.values[0, column, place_of("weight_norm")].item()


def _branch(module: str, weighted: set[str]) -> str:
    """The smallest module around a scale that holds weights; the network has the empty name."""
    while module and not any(is_inside(name, module) for name in weighted):
        module = module.rpartition(".")[0]
    return module
