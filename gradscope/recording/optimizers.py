"""What an optimizer is: what it wraps, and which parameters it steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from gradscope.errors import RecorderError


def innermost(given: Any) -> list[Any]:
    """The optimizers that step the parameters in what a user calls his optimizer.

    Accelerate, Transformers, Lightning, Opacus, fastai, Lookahead and SAM hold the optimizer that
    steps and leave the step to it. Only what stands in the object itself is looked at: a property
    may do something when it is read.

    Args:
        given: an optimizer, one that wraps others, several of them, or None.

    Returns:
        Each once; empty for None.

    Raises:
        RecorderError: something in it is no optimizer.
    """
    if given is None:
        return []
    if _is_optimizer(given):
        return _unwrapped(given)
    several = given.values() if isinstance(given, Mapping) else given
    if isinstance(several, str) or not isinstance(several, Iterable):
        several = [several]
    found: dict[int, Any] = {}
    for each in several:
        if not _is_optimizer(each):
            raise RecorderError(
                f"watch() needs a torch.optim.Optimizer, got {type(each).__name__}; "
                "pass the optimizer itself, or leave it out and call scope.step()"
            )
        found.update((id(inner), inner) for inner in _unwrapped(each))
    return list(found.values())


def stepped_by(optimizer: Any) -> set[int]:
    """The parameters that an optimizer steps, by identity."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _is_optimizer(given: Any) -> bool:
    kind, attributes = type(given), attributes_of(given)
    has_groups = "param_groups" in attributes or hasattr(kind, "param_groups")
    if isinstance(given, Optimizer) or not has_groups:
        return isinstance(given, Optimizer)
    holds_one = any(isinstance(value, Optimizer) for value in attributes.values())
    return holds_one or callable(getattr(kind, "step", None))


def attributes_of(given: Any) -> dict[str, Any]:
    """What stands in the object itself."""
    return getattr(given, "__dict__", {})


def has_hooks(given: Any) -> bool:
    """Whether torch made it an optimizer: many that wrap one have the class and nothing else."""
    return isinstance(given, Optimizer) and "_optimizer_step_pre_hooks" in attributes_of(given)


def _unwrapped(given: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    seen |= {id(given)}
    held = [each for each in _held(given) if id(each) not in seen]
    if not held:
        return [given]
    if has_hooks(given):  # it may step by itself, and hold another for a part or a purpose
        inside = set[int]().union(*(stepped_by(each) for each in held))
        if not stepped_by(given) <= inside:
            return [given]
    found = {id(inner): inner for each in held for inner in _unwrapped(each, seen)}
    return list(found.values())


def _held(given: Any) -> Iterator[Any]:
    for value in list(attributes_of(given).values()):
        if isinstance(value, dict):
            value = list(value.values())  # noqa: PLW2901 - what is in it
        for each in value if isinstance(value, list | tuple) else (value,):
            if _is_optimizer(each):
                yield each
