"""Cats and dogs of the demo set."""

from __future__ import annotations

from gradscope.data.figure import Colour, Figure, Random, near

_BLACK, _WHITE = (70, 60, 55), (225, 220, 210)

_CATS = (_BLACK, _WHITE, (205, 150, 90), (140, 135, 130))
"""Coats of cats: also ginger and grey."""

_DOGS = (_BLACK, _WHITE, (120, 80, 50), (235, 200, 150))
"""Coats of dogs: also brown and cream."""


def cat(rng: Random) -> Figure:
    """Upright pointed ears, a short face with whiskers, a long thin tail."""
    return _animal(rng, is_cat=True)


def dog(rng: Random) -> Figure:
    """Hanging ears, or pricked ones, a long snout with a tongue, a short tail."""
    return _animal(rng, is_cat=False)


def _animal(rng: Random, *, is_cat: bool) -> Figure:
    """Cats and dogs share poses, bodies and half of their coats; head and tail differ."""
    figure = Figure()
    coats = _CATS if is_cat else _DOGS
    coat = near(coats[rng.integers(0, len(coats))], rng, 25)
    patch = near(coats[rng.integers(0, len(coats))], rng, 25)
    kind = rng.integers(0, 3)
    if kind == 0:  # the face alone
        figure.place(_head(rng, coat, patch, is_cat=is_cat), (0.0, 0.1), 0.8)
        return figure
    tail = near(coat, rng, 20)
    if kind == 1:  # sitting
        if is_cat:
            figure.line([(0.3, 0.85), (0.75, 0.8), (0.9, 0.4), (0.8, 0.1)], 0.1, tail)
        else:
            figure.line([(0.35, 0.75), (0.72, 0.5)], 0.17, tail)
        figure.oval((0, 0.5), (0.48, 0.55), coat)
        figure.oval((0, 0.6), (0.22, 0.4), patch)
        for x in (-0.2, 0.2):
            figure.oval((x, 0.95), (0.14, 0.1), patch)
        figure.place(_head(rng, coat, patch, is_cat=is_cat), (0.0, -0.35), 0.45)
        return figure
    if is_cat:
        figure.line([(-0.6, 0.0), (-0.95, -0.25), (-0.9, -0.65), (-0.75, -0.85)], 0.1, tail)
    else:
        figure.line([(-0.6, 0.0), (-0.9, -0.35)], 0.17, tail)
    for x in (-0.55, -0.35, 0.25, 0.45):
        figure.box((x - 0.08, 0.2), (x + 0.08, 0.85), near(coat, rng, 20))
    figure.oval((-0.05, 0.1), (0.68, 0.3 if is_cat else 0.34), coat)
    if rng.random() < 0.5:
        figure.oval((rng.uniform(-0.4, 0.3), 0.05), (0.22, 0.17), patch)
    figure.place(_head(rng, coat, patch, is_cat=is_cat), (0.62, -0.3), 0.36)
    return figure


def _head(rng: Random, coat: Colour, patch: Colour, *, is_cat: bool) -> Figure:
    head, dark = Figure(), (30, 25, 25)
    ear = near(coat, rng, 35) if rng.random() < 0.5 else patch
    hanging = not is_cat and rng.random() < 0.9  # one dog in ten pricks its ears
    for side in (-1, 1):
        if not hanging:
            tip = rng.uniform(1.15, 1.45) if is_cat else rng.uniform(1.05, 1.35)
            head.add([(side * 0.9, -0.25), (side * 0.75, -tip), (side * 0.15, -0.75)], ear)
            head.add(
                [(side * 0.75, -0.5), (side * 0.7, -tip + 0.25), (side * 0.35, -0.7)],
                (215, 150, 150),
            )
    head.oval((0, 0), (1.0 if is_cat else 0.85, 0.85 if is_cat else 0.95), coat)
    for side in (-1, 1):
        if hanging:
            head.oval((side * 0.88, 0.1), (0.26, 0.65), ear, -side * rng.uniform(0.0, 0.4))
        eye = (150, 190, 80) if is_cat and rng.random() < 0.7 else (70, 45, 25)
        head.oval((side * 0.4, -0.15), (0.19 if is_cat else 0.13, 0.16), eye)
        head.oval((side * 0.4, -0.15), (0.06 if is_cat else 0.09, 0.14 if is_cat else 0.1), dark)
    if is_cat:
        head.oval((0, 0.35), (0.35, 0.24), near(patch, rng, 15))
        head.add([(-0.12, 0.18), (0.12, 0.18), (0, 0.34)], (205, 120, 130))
        for side in (-1, 1):
            for end in (0.2, 0.4, 0.6):
                head.line([(side * 0.25, 0.38), (side * 1.25, end)], 0.035, (235, 235, 235))
    else:
        head.oval((0, 0.5), (0.42, 0.48), near(patch, rng, 15))
        head.oval((0, 0.28), (0.2, 0.14), dark)
        head.line([(0, 0.4), (0, 0.62)], 0.05, dark)
        if rng.random() < 0.5:
            head.oval((0.05, 0.88), (0.14, 0.25), (225, 100, 115))
    return head
