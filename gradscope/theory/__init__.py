"""Mean-field theory: the factor on the gradient norm that a network should have, per block."""

from gradscope.theory.forecast import Forecast

__all__ = ["Forecast"]
