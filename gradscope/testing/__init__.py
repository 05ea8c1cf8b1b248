"""Assertions on gradients, and the pytest plugin.

Example:
    >>> def test_gradients_reach_the_input():  # doctest: +SKIP
    ...     gradscope.testing.assert_gradient_health(MyNet(), torch.randn(8, 3, 32, 32))
    >>> def test_gradients_stay_as_they_were(gradient_profile):  # doctest: +SKIP
    ...     gradient_profile(MyNet, torch.randn(8, 3, 32, 32))
"""

from gradscope.testing.health import assert_gradient_health

__all__ = ["assert_gradient_health"]
