"""check_engine(): whether an engine is there, and its library with it."""

from __future__ import annotations

import importlib.util

from gradscope.errors import ConfigError, nearest

_LIBRARIES = {"local": ("", ""), "ray": ("ray", "Ray"), "slurm": ("submitit", "submitit")}
"""Engine, and so the extra that brings it -> the module it needs, and what that is called."""


def check_engine(engine: str) -> None:
    """See that there is such an engine, and that what it needs can be imported; nothing is.

    Args:
        engine: its name.

    Raises:
        ConfigError: there is none of that name, or its library is not installed.
    """
    if engine not in _LIBRARIES:
        raise ConfigError(f"unknown engine '{engine}'; {nearest(engine, _LIBRARIES)}")
    module, title = _LIBRARIES[engine]
    if module and importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"engine '{engine}': {title} is not installed; pip install 'gradscope-torch[{engine}]',"
            " or take the engine 'local'"
        )
