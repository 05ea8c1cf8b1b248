"""Assertions on gradients, and the pytest plugin.

pytest imports this module at its start, for everyone who has gradscope installed: it imports
neither torch nor pytest, and does nothing to runs that do not ask for it.

Example:
    >>> def test_gradients_reach_the_input():  # doctest: +SKIP
    ...     gradscope.testing.assert_gradient_health(MyNet(), torch.randn(8, 3, 32, 32))
    >>> def test_gradients_stay_as_they_were(gradient_profile):  # doctest: +SKIP
    ...     gradient_profile(MyNet, torch.randn(8, 3, 32, 32))
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from torch import nn

    from gradscope.diagnosis import Diagnosis

__all__ = ["assert_gradient_health"]


def assert_gradient_health(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    allow: Collection[str] = (),
) -> Diagnosis:
    """Fail unless one forward and backward pass finds the gradients of a network healthy.

    Args:
        model: any module; it comes back as it was.
        inputs: what the model is called with, as for `gradscope.probe`.
        targets: what the loss compares the output with.
        loss: as for `gradscope.probe`.
        allow: further verdicts that are good enough, for example ``["inconclusive"]``.

    Returns:
        The diagnosis, for closer looks.

    Raises:
        AssertionError: the verdict is another one; the message is the whole diagnosis.
        ConfigError: `allow` names no verdict.
        ModelError: the model does not run on the inputs.
    """
    __tracebackhide__ = True
    from gradscope.diagnosis import Verdict, diagnose
    from gradscope.errors import ConfigError, nearest
    from gradscope.probing import probe

    for name in allow:
        if name not in list(Verdict):
            raise ConfigError(f"allow names no verdict '{name}'; {nearest(name, list(Verdict))}")
    diagnosis = diagnose(probe(model, inputs, targets, loss=loss, predict=False))
    if diagnosis.verdict not in {Verdict.HEALTHY, *allow}:
        raise AssertionError(f"{type(model).__name__} has unhealthy gradients\n{diagnosis}")
    return diagnosis


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gradscope-update``."""
    parser.getgroup("gradscope").addoption(
        "--gradscope-update",
        action="store_true",
        default=False,
        help="accept the gradient profiles as they are now, where they differ from the stored ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the fixtures."""
    from gradscope.testing import fixtures

    config.pluginmanager.register(fixtures, "gradscope-fixtures")
