"""Mean-field rules per operation: the factor of one autograd node on the squared gradient norm.

Each rule assumes what mean-field theory assumes: the gradient that arrives at an operation is
independent of its weights and of its forward values, and its elements are independent of each
other. Weights' variance, fan and forward statistics (share of active units, variance that a
normalisation divides by) are read from the node; no backward pass is run.
"""

from gradscope.theory.operators.table import RULES, read_operation

__all__ = ["RULES", "read_operation"]
