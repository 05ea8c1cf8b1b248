"""assert_gradient_health(): a test fails unless the gradients of a network are healthy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from gradscope.diagnosis.verdict import Diagnosis


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
    from gradscope.diagnosis.judge import diagnose
    from gradscope.diagnosis.verdict import Verdict
    from gradscope.errors import ConfigError, nearest
    from gradscope.probing.probe import probe

    for name in allow:
        if name not in list(Verdict):
            raise ConfigError(f"allow names no verdict '{name}'; {nearest(name, list(Verdict))}")
    diagnosis = diagnose(probe(model, inputs, targets, loss=loss, predict=False))
    if diagnosis.verdict not in {Verdict.HEALTHY, *allow}:
        raise AssertionError(f"{type(model).__name__} has unhealthy gradients\n{diagnosis}")
    return diagnosis
