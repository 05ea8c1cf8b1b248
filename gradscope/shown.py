"""How objects show themselves in a notebook: small pieces of HTML, every text in them escaped.

Colours are those of the notebook, light or dark; a badge brings its own. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;color:inherit"
_BOX = "border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:8px 12px;margin:4px 0"
_BADGE = "color:#fff;border-radius:3px;padding:1px 8px"

WELL, UNSURE, SICK, PLAIN = "#1a7f37", "#8a6100", "#b42318", "#57606a"
"""Grounds of a badge; white stands on each with a contrast of at least 4.5."""


def card(title: str, *parts: str, badge: tuple[str, str] | None = None) -> str:
    """A frame with a heading.

    Args:
        title: plain text.
        parts: from the other functions here.
        badge: plain text and one of the grounds.
    """
    label = "" if badge is None else f' <span style="{_BADGE};background:{badge[1]}">'
    label += "" if badge is None else f"{escape(badge[0])}</span>"
    head = f'<div style="font-weight:600">{escape(title)}{label}</div>'
    return f'<div style="{_BOX}">{head}{"".join(parts)}</div>'


def line(text: str) -> str:
    """A line of plain text; of an empty one nothing."""
    return f'<div style="margin-top:4px">{escape(text)}</div>' if text else ""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; without rows nothing."""
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    head = "".join(f'<th scope="col" style="{_CELL}">{escape(title)}</th>' for title in titles)
    return (
        '<table style="margin-top:6px;border-collapse:collapse;color:inherit">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def some(items: Sequence[object], most: int = 8) -> str:
    """The first of several, and how many more there are."""
    told = ", ".join(str(item) for item in items[:most])
    return told if len(items) <= most else f"{told} and {len(items) - most} more"
