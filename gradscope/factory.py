"""load_factory(): the callable that ``package.module:factory`` names, for models and data alike."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from gradscope.errors import ModelError, named, nearest

_LISTED = 12
"""Most valid names that a message lists; ``torchvision.models`` has hundreds."""


def load_factory(spec: str) -> Callable[..., Any]:
    """Import the callable that ``package.module:factory`` names.

    The current folder is put on the import path, as ``python -m`` does, so that a module beside
    the grid is found from the console script too.

    Args:
        spec: dotted module, a colon, a name in it (dots reach into classes).

    Returns:
        The callable, not called.

    Raises:
        ModelError: the spec has another form, the module or the name in it does not exist, the
            import raises, or what is found cannot be called.
    """
    module_name, colon, attribute = spec.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ModelError(
            f"'{spec}' names no factory; write package.module:factory, "
            "for example torchvision.models:resnet18"
        )
    found: Any = _load_module(module_name, spec)
    for i, name in enumerate(attribute.split(".")):
        if not hasattr(found, name):
            owner = ".".join([module_name, *attribute.split(".")[:i]])
            raise ModelError(
                f"{spec}: {owner} has no '{name}'; {_suggest(name, _callables(found))}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ModelError(
            f"{spec}: {attribute} is a {type(found).__name__}, which cannot be called; "
            "name a function or class that returns what is asked for"
        )
    return found  # type: ignore[no-any-return]  # any callable; its caller checks what it returns


def _load_module(name: str, spec: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            raise _import_failed(name, spec, error) from error
        parent, _, last = missing.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else (here,)
        siblings = {module.name for module in pkgutil.iter_modules(folders)}
        suggestion = f"; {_suggest(last, siblings)}" if siblings else ""
        raise ModelError(
            f"{spec}: no module '{missing}', not installed, not in the current folder{suggestion}"
        ) from error
    except Exception as error:
        raise _import_failed(name, spec, error) from error


def _import_failed(name: str, spec: str, error: Exception) -> ModelError:
    reason = named(error)
    return ModelError(f"{spec}: importing {name} failed with {reason}; mend the module")


def _callables(owner: Any) -> set[str]:
    return {n for n in dir(owner) if not n.startswith("_") and callable(getattr(owner, n, None))}


def _suggest(name: str, valid: Iterable[str]) -> str:
    """`nearest`, with only the likeliest listed where there are many."""
    choices = sorted(valid)
    if len(choices) > _LISTED:
        choices = difflib.get_close_matches(name, choices, n=_LISTED, cutoff=0.0)
    return nearest(name, choices)
