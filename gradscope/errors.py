"""What gradscope raises and warns of on purpose; the command line turns errors into one line."""

from __future__ import annotations

import difflib
import errno
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


class MachineError(GradscopeError):
    """This machine cannot, for want of space: what was begun cannot go on, whatever it was."""


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

_SAID = ("No space left on device", "No usable temporary directory")


def no_space(error: BaseException) -> MachineError | None:
    """The full disk that is at the bottom of an error, as one line; None where it is none.

    Args:
        error: as it was caught; what caused it is looked at too.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, MachineError):
        if isinstance(found, OSError) and (
            found.errno in _FULL or any(words in str(found) for words in _SAID)
        ):
            where = f"{found.filename}: " if found.filename else ""
            reason = found.strerror or str(found)
            return MachineError(
                f"{where}no room to write ({reason}); make room, then run the same again"
            )
        found = found.__cause__ or found.__context__
    return found


def one_line(said: object, most: int | None = None) -> str:
    """What an error says, on one line.

    Args:
        said: the error, or any text.
        most: characters that are kept; None: all.
    """
    return " ".join(str(said).split())[:most]


def named(error: BaseException, most: int | None = None) -> str:
    """The same after the type of the error, where that tells as much as its text."""
    return one_line(f"{type(error).__name__}: {error}", most)


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
