"""How factors, levels, variants and numbers are written; one place for all of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "—"
"""What stands where there is no number."""

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def level(value: Any) -> str:
    """A factor's value for people: ``yes``, ``1e-3``, ``kaiming``.

    Args:
        value: any JSON type.

    Returns:
        Text, not escaped.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else json.dumps(value, default=str)


def identity(value: Any) -> str:
    """A key under which equal values of a factor fall together, whatever their type."""
    return json.dumps(value, sort_keys=True, default=str)


def variant(factors: Mapping[str, Any]) -> str:
    """One point of the matrix for people: ``skip yes · depth 32``."""
    return " · ".join(f"{name} {level(value)}" for name, value in factors.items())


def number(value: float | None, digits: int = 3) -> str:
    """A number at so many significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return (
            MISSING if value is None or math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
        )
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    else:
        text = f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e+")
    return text.replace("-", MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent: ``53.6 %``."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{100 * share:.{digits}f} %".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A number that always carries its sign."""
    text = number(value, digits)
    return f"+{text}" if value > 0 else text


def fixed(value: float, decimals: int = 3) -> str:
    """A signed number with so many decimals, for columns that are compared by eye."""
    if not math.isfinite(value):
        return number(value)
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A time for people: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def text(value: Any) -> str:
    """Nested facts on one line: ``model HW5Net, seed 0``; a value with its unit as one number."""
    if isinstance(value, dict) and value.keys() == {"value", "unit"}:
        return f"{text(value['value'])} {value['unit']}".strip()
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(inner) for inner in value)
    return number(value) if isinstance(value, float) else str(value)


def listed(names: Iterable[str], limit: int = 6) -> str:
    """Names in a sentence: ``a, b and c``; beyond the limit only their number."""
    items = list(names)
    if len(items) > limit:
        return f"{', '.join(items[: limit - 1])} and {len(items) - limit + 1} more"
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def count(n: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 cell``, ``1,000 cells``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
