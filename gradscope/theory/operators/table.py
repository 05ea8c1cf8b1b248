"""Mean-field rules per operation: the factor of one autograd node on the squared gradient norm.

Each rule assumes what mean-field theory assumes: the gradient that arrives at an operation is
independent of its weights and of its forward values, and its elements are independent of each
other. Weights' variance, fan and forward statistics (share of active units, variance that a
normalisation divides by) are read from the node; no backward pass is run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gradscope.theory.flux import Operation
from gradscope.theory.operators import attention, elementwise, layout, linear, norms
from gradscope.theory.operators.nodes import Rule, kind_of

RULES: dict[str, Rule] = {
    **attention.RULES,
    **elementwise.RULES,
    **layout.RULES,
    **linear.RULES,
    **norms.RULES,
}
"""Kind of autograd node -> rule. Names and saved values come from torch's derivatives.yaml."""


def read_operation(node: Any) -> Operation:
    """Apply the rule that fits an autograd node.

    Args:
        node: ``grad_fn`` of a tensor, before its graph is freed.

    Returns:
        The operation; with a reason where no rule fits.
    """
    kind = kind_of(node)
    rule = RULES.get(kind)
    inputs = len(node.next_functions)
    if rule is None:
        return Operation((1.0,) * inputs, reason=f"no mean-field result for {kind}")
    operation = rule(node)
    if any(math.isnan(f) or f == math.inf for f in operation.factors):
        return Operation((1.0,) * inputs, reason=f"forward values of {kind} are not finite")
    missing = inputs - len(operation.factors)
    if missing <= 0:
        return operation
    # Biases and other constants come last: no gradient flows on from them.
    return replace(operation, factors=(*operation.factors, *(0.0,) * missing))
