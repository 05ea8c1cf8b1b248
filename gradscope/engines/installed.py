"""check_installed(): whether the library of an engine can be imported."""

from __future__ import annotations

import importlib.util

from gradscope.errors import ConfigError

_LIBRARIES = {"ray": ("ray", "Ray"), "slurm": ("submitit", "submitit")}
"""Engine, and so the extra that brings it -> the module it needs, and what that is called."""


def check_installed(engine: str) -> None:
    """See that what an engine needs can be imported, without importing it.

    Args:
        engine: its name; one that needs no library of its own passes.

    Raises:
        ConfigError: it is not installed.
    """
    module, title = _LIBRARIES.get(engine, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"engine '{engine}': {title} is not installed; pip install 'gradscope-torch[{engine}]',"
            " or take the engine 'local'"
        )
