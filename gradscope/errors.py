"""What gradscope raises and warns of on purpose; the command line turns errors into one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GradscopeError(Exception):
    """Bad input or misuse; the message names what, where and what would be right, on one line."""


class ConfigError(GradscopeError):
    """A grid, a setting or an argument is wrong."""


class DataError(GradscopeError):
    """A data set cannot be read or makes no sense."""


class ModelError(GradscopeError):
    """A model cannot be found, built or run."""


class RecorderError(GradscopeError):
    """The recorder cannot do what it was asked for."""


class TraceError(GradscopeError):
    """A trace cannot be read, or does not hold what was asked for."""


class StatisticsError(GradscopeError):
    """A statistic is undefined for the tensor it was asked of."""


class GradscopeWarning(UserWarning):
    """Something that the recorder cannot see or use, said once."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the valid choices for a wrong name, with the likeliest first.

    Args:
        name: what was given.
        valid: what would have been right.

    Returns:
        ``did you mean 'skip'? valid: depth, norm, skip``, or only the list when nothing is near.
    """
    choices = sorted({str(choice) for choice in valid})
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    listed = "valid: " + ", ".join(choices)
    return f"did you mean '{close[0]}'? {listed}" if close else listed
