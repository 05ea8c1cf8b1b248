"""Which models are watched: a model has one scope at a time, compiled or not."""

from __future__ import annotations

import weakref

from torch import nn

_SCOPES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[object]] = weakref.WeakKeyDictionary()


def note(model: nn.Module, scope: object) -> None:
    """From now on the scope records the model; neither is kept alive."""
    _SCOPES[_unwrapped(model)] = weakref.ref(scope)


def forget(model: nn.Module) -> None:
    """The model may be watched anew."""
    _SCOPES.pop(_unwrapped(model), None)


def is_watched(model: nn.Module) -> bool:
    """Whether a scope that is not closed records it, or what `torch.compile` wrapped it in."""
    scope = _SCOPES.get(_unwrapped(model))
    return scope is not None and scope() is not None


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model
