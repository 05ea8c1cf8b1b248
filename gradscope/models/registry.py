"""What factories of models take, and the models that they build."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from gradscope.errors import GradscopeError, ModelError, named, nearest
from gradscope.models.config import ModelConfig, resolve
from gradscope.models.init import initialise, seeded

CLASS_COUNT_NAMES = ("n_classes", "num_classes")
"""Names under which factories take the number of classes, in order of preference."""


def valid_args(name: str) -> set[str]:
    """Keyword arguments that a model is known to take.

    Args:
        name: as for `resolve`.

    Raises:
        ModelError: as `resolve`.
    """
    return _accepted(resolve(name))[0]


def check_args(config: ModelConfig) -> None:
    """Check the model's name and the names of its arguments without building it.

    Arguments of a factory that takes ``**kwargs`` to an unknown end are left to the factory.

    Raises:
        ModelError: no such model, or it takes no such argument.
    """
    known, is_open = _accepted(resolve(config.name))
    for name in config.args:
        if name not in known and not is_open:
            valid = nearest(name, known) if known else "it takes none"
            raise ModelError(f"model '{config.name}' takes no argument '{name}'; {valid}")


def build(config: ModelConfig, n_classes: int | None = None, seed: int = 0) -> nn.Module:
    """Build the model that a configuration names, on the CPU, reproducibly.

    Args:
        config: name, arguments and initialisation.
        n_classes: handed on where the factory takes it by a name of `CLASS_COUNT_NAMES` and the
            arguments do not set it.
        seed: of torch's generators while the model is built; the caller's stay undisturbed.

    Returns:
        A new module; equal arguments and seed give bit-identical parameters.

    Raises:
        ModelError: the name or an argument is wrong, the factory raises or returns no module, or
            the initialisation does not fit the model.
    """
    check_args(config)
    factory = resolve(config.name)
    args = dict(config.args)
    known = _accepted(factory)[0]
    taken = [name for name in CLASS_COUNT_NAMES if name in known]
    if n_classes is not None and taken and not set(taken) & set(args):
        args[taken[0]] = n_classes
    with seeded(seed):
        try:
            model = factory(**args)
        except GradscopeError:
            raise
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in args.items())
            reason = named(error)
            raise ModelError(f"building {config.name}({given}) failed with {reason}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{config.name} returned a {type(model).__name__}; "
                "a model factory returns a torch.nn.Module"
            )
        initialise(model, config.init)
    return model


def _accepted(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """Keyword names that a factory takes, and whether it takes others that cannot be known.

    ``**kwargs`` of a factory annotated to return a class, as all in torchvision.models are, go to
    that class: its optional arguments count too, its required ones the factory fills in itself.
    """
    try:
        signature = inspect.signature(factory, eval_str=True)
    except (NameError, SyntaxError):  # an annotation that only a type checker can resolve
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # built-ins without a signature
        return set(), True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = signature.parameters.values()
    names = {p.name for p in parameters if p.kind in by_name}
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return names, False
    made = signature.return_annotation
    if not inspect.isclass(made) or made in (factory, nn.Module) or made is inspect.Parameter.empty:
        return names, True
    inner, is_open = _accepted(made)
    required = {p.name for p in inspect.signature(made).parameters.values() if p.default is p.empty}
    return names | (inner - required), is_open
