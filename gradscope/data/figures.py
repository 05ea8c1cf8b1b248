"""What the demo set shows: the five classes and the clutter, as polygons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Corners of a polygon, shape (corners, 2): x to the right, y down."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

Random = np.random.Generator


@dataclass
class Figure:
    """Polygons from back to front, in coordinates where the object fills about -1..1."""

    parts: list[tuple[Points, Colour]] = field(default_factory=list)

    def add(self, points: Points | list[tuple[float, float]], colour: Colour) -> None:
        """Put a polygon in front of the others."""
        self.parts.append((np.asarray(points, float), colour))

    def oval(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        turn: float = 0.0,
    ) -> None:
        """Put an ellipse, turned by so many radians, in front of the others."""
        self.add(turned(_CIRCLE * radii, turn) + np.asarray(centre), colour)

    def box(
        self, corner: tuple[float, float], opposite: tuple[float, float], colour: Colour
    ) -> None:
        """Put an upright rectangle in front of the others."""
        (x0, y0), (x1, y1) = corner, opposite
        self.add([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def place(self, other: Figure, centre: tuple[float, float], size: float) -> None:
        """Put another figure, so many times its size, in front."""
        for points, colour in other.parts:
            self.add(points * size + np.asarray(centre), colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        """Put a stroke in front of the others."""
        for a, b in pairwise(np.asarray(points, float)):
            along = (b - a) / np.hypot(*(b - a)) * width / 2
            across = np.array([-along[1], along[0]])
            ends = (a - along + across, b + along + across, b + along - across, a - along - across)
            self.add(np.stack(ends), colour)


_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def turned(points: Points, angle: float) -> Points:
    """Turn points by an angle in radians about the origin, from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned_points: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned_points


def any_colour(rng: Random) -> Colour:
    """A random colour, neither black nor white."""
    red, green, blue = rng.integers(15, 241, 3).tolist()
    return red, green, blue


def _near(colour: Colour, rng: Random, spread: float) -> Colour:
    shade = rng.uniform(-spread, spread)
    shifts = (shade + rng.uniform(-6, 6, 3)).tolist()
    red, green, blue = (
        min(max(int(c + shift), 0), 255) for c, shift in zip(colour, shifts, strict=True)
    )
    return red, green, blue


def airplane(rng: Random) -> Figure:
    """Seen from the side, or from above or below."""
    figure = Figure()
    body = _near((200, 205, 215), rng, 50) if rng.random() < 0.6 else any_colour(rng)
    wing, trim = _near(body, rng, 45), any_colour(rng)
    slim = rng.uniform(0.13, 0.2)
    if rng.random() < 0.5:  # from above
        span, sweep = rng.uniform(0.75, 1.0), rng.uniform(0.05, 0.5)
        for side in (-1, 1):
            figure.add(
                [(0.25, 0), (0.25 - sweep, side * span), (0.08 - sweep, side * span), (-0.15, 0)],
                wing,
            )
            figure.add([(-0.7, 0), (-0.92, side * 0.36), (-1.02, side * 0.36), (-0.95, 0)], wing)
            figure.oval((0.15 - sweep / 2, side * span / 2), (0.13, 0.05), trim)
        figure.oval((0, 0), (1, slim), body)
        figure.line([(-0.95, 0), (-0.6, 0)], 0.06, trim)
        return figure
    figure.add([(-0.62, -0.05), (-0.95, -0.55), (-0.75, -0.55), (-0.35, -0.05)], trim)
    figure.add([(0.2, 0), (-0.25, -0.35), (-0.38, -0.35), (-0.15, 0)], wing)
    figure.oval((0, 0), (1, slim), body)
    figure.add([(-0.7, 0), (-1.0, 0.12), (-0.85, 0.12), (-0.5, 0)], wing)
    for x in np.arange(-0.5, 0.65, 0.17):
        figure.oval((float(x), -0.06), (0.04, 0.035), (40, 50, 70))
    figure.add([(0.7, -0.1), (0.92, -0.06), (0.8, 0.0), (0.68, -0.02)], (40, 50, 70))
    figure.add([(0.25, 0.02), (-0.45, 0.5), (-0.6, 0.5), (-0.2, 0.04)], wing)
    figure.oval((-0.05, 0.22), (0.14, 0.06), _near(wing, rng, 40))
    return figure


def bus(rng: Random) -> Figure:
    """Seen from the side or from the front."""
    figure = Figure()
    paint, glass = any_colour(rng), _near((60, 80, 100), rng, 45)
    if rng.random() < 0.35:  # from the front
        figure.box((-0.62, -0.9), (0.62, 0.72), paint)
        figure.box((-0.54, -0.62), (0.54, 0.08), glass)
        figure.box((-0.4, -0.84), (0.4, -0.68), any_colour(rng))
        for side in (-1, 1):
            figure.oval((side * 0.42, 0.42), (0.11, 0.09), (245, 240, 190))
            figure.box((side * 0.45 - 0.12, 0.7), (side * 0.45 + 0.12, 0.92), (25, 25, 28))
            figure.box((side * 0.72 - 0.07, -0.5), (side * 0.72 + 0.07, -0.15), (30, 30, 30))
        figure.box((-0.3, 0.35), (0.3, 0.5), _near(paint, rng, 60))
        return figure
    decks = 2 if rng.random() < 0.25 else 1
    top = -0.75 if decks == 2 else -0.42
    figure.box((-1, top), (1, 0.4), paint)
    if rng.random() < 0.6:
        figure.box((-1, 0.12), (1, 0.22), any_colour(rng))
    width = rng.uniform(0.2, 0.32)
    for deck in range(decks):
        y = top + 0.08 + 0.42 * deck
        for x in np.arange(-0.92, 0.66, width + 0.05):
            figure.box((float(x), y), (float(x) + width, y + 0.28), glass)
    figure.box((0.72, top + 0.08), (0.96, 0.32), glass)
    for x in (-0.6, 0.55):
        figure.oval((x, 0.42), (0.19, 0.19), (25, 25, 28))
        figure.oval((x, 0.42), (0.08, 0.08), (150, 150, 150))
    return figure


def cat(rng: Random) -> Figure:
    """Upright pointed ears, a short face with whiskers, a long thin tail."""
    return _animal(rng, is_cat=True)


def dog(rng: Random) -> Figure:
    """Hanging ears, or pricked ones, a long snout with a tongue, a short tail."""
    return _animal(rng, is_cat=False)


def _animal(rng: Random, *, is_cat: bool) -> Figure:
    """Cats and dogs share coats, poses and bodies; head and tail differ."""
    figure = Figure()
    coats = (
        (205, 150, 90),
        (70, 60, 55),
        (225, 220, 210),
        (140, 135, 130),
        (120, 80, 50),
        (235, 200, 150),
    )
    coat = _near(coats[rng.integers(0, len(coats))], rng, 25)
    patch = _near(coats[rng.integers(0, len(coats))], rng, 25)
    kind = rng.integers(0, 3)
    if kind == 0:  # the face alone
        figure.place(_head(rng, coat, patch, is_cat=is_cat), (0.0, 0.1), 0.8)
        return figure
    tail = _near(coat, rng, 20)
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
        figure.box((x - 0.08, 0.2), (x + 0.08, 0.85), _near(coat, rng, 20))
    figure.oval((-0.05, 0.1), (0.68, 0.3 if is_cat else 0.34), coat)
    if rng.random() < 0.5:
        figure.oval((rng.uniform(-0.4, 0.3), 0.05), (0.22, 0.17), patch)
    figure.place(_head(rng, coat, patch, is_cat=is_cat), (0.62, -0.3), 0.36)
    return figure


def _head(rng: Random, coat: Colour, patch: Colour, *, is_cat: bool) -> Figure:
    head, dark = Figure(), (30, 25, 25)
    ear = _near(coat, rng, 35) if rng.random() < 0.5 else patch
    hanging = not is_cat and rng.random() < 0.75  # one dog in four pricks its ears
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
        head.oval((0, 0.35), (0.35, 0.24), _near(patch, rng, 15))
        head.add([(-0.12, 0.18), (0.12, 0.18), (0, 0.34)], (205, 120, 130))
        for side in (-1, 1):
            for end in (0.2, 0.4, 0.6):
                head.line([(side * 0.25, 0.38), (side * 1.25, end)], 0.035, (235, 235, 235))
    else:
        head.oval((0, 0.5), (0.42, 0.48), _near(patch, rng, 15))
        head.oval((0, 0.28), (0.2, 0.14), dark)
        head.line([(0, 0.4), (0, 0.62)], 0.05, dark)
        if rng.random() < 0.5:
            head.oval((0.05, 0.88), (0.14, 0.25), (225, 100, 115))
    return head


def pizza(rng: Random) -> Figure:
    """Whole, with a slice missing, or one slice."""
    figure = Figure()
    crust, cheese = _near((200, 145, 80), rng, 30), _near((240, 200, 100), rng, 30)
    sauce = _near((190, 60, 40), rng, 25)
    kind = rng.random()
    if kind < 0.3:  # one slice, its tip down
        half = rng.uniform(0.3, 0.5)
        rim = [(-half * 1.5, -0.85), (0.0, -1.0), (half * 1.5, -0.85)]
        figure.add([*rim, (0.0, 1.0)], cheese)
        figure.line(rim, 0.24, crust)
        spots = [(-0.2, -0.5), (0.25, -0.45), (0.0, -0.05), (0.05, 0.4)]
    else:
        gap = rng.uniform(0.5, 1.1) if kind < 0.6 else 0.0
        angles = np.linspace(gap, 2 * np.pi, 28)
        rim_ = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        centre = np.zeros((1 if gap else 0, 2))
        for radius, colour in ((1.0, crust), (0.84, sauce), (0.79, cheese)):
            figure.add(np.concatenate([rim_ * radius, centre]), colour)
        turns = rng.uniform(gap + 0.25, 2 * np.pi - 0.25, 10)
        radii = np.sqrt(rng.uniform(0.02, 0.42, 10))
        spots = list(
            zip((radii * np.cos(turns)).tolist(), (radii * np.sin(turns)).tolist(), strict=True)
        )
    toppings = ((185, 50, 40), (60, 120, 50), (70, 45, 60), (235, 225, 200))
    chosen = [toppings[i] for i in rng.integers(0, len(toppings), 2)]
    radius = rng.uniform(0.08, 0.15)
    for i, (x, y) in enumerate(spots):
        figure.oval((x, y), (radius, radius * rng.uniform(0.6, 1)), _near(chosen[i % 2], rng, 20))
    return figure


FIGURES: dict[str, Callable[[Random], Figure]] = {
    "airplane": airplane,
    "bus": bus,
    "cat": cat,
    "dog": dog,
    "pizza": pizza,
}
"""Class -> how it is drawn."""


def disc(rng: Random, colour: Colour, other: Colour) -> Figure:
    """A ball, a plate or a clock."""
    figure = Figure()
    figure.oval((0, 0), (1, 1), colour)
    figure.oval((0, 0), (0.75, 0.75), other)
    if rng.random() < 0.5:
        figure.line([(0, -0.5), (0, 0), (0.4, 0.2)], 0.1, colour)
    return figure


def house(_: Random, colour: Colour, other: Colour) -> Figure:
    """A box with windows."""
    figure = Figure()
    figure.box((-0.8, -1), (0.8, 1), colour)
    for x in (-0.5, 0.1):
        for y in (-0.7, -0.1, 0.5):
            figure.box((x, y), (x + 0.4, y + 0.35), other)
    return figure


def tree(_: Random, colour: Colour, other: Colour) -> Figure:
    """A triangle on a trunk."""
    figure = Figure()
    figure.box((-0.1, 0), (0.1, 1), other)
    figure.add([(-0.7, 0.5), (0, -1), (0.7, 0.5)], colour)
    return figure


def bush(rng: Random, colour: Colour, _: Colour) -> Figure:
    """A heap of leaves, or a cloud."""
    figure = Figure()
    for x, y in rng.uniform(-0.6, 0.6, (5, 2)).tolist():
        figure.oval((x, y), (0.45, 0.4), _near(colour, rng, 15))
    return figure


def stick(rng: Random, colour: Colour, _: Colour) -> Figure:
    """A branch, a post or a wire."""
    figure = Figure()
    figure.line([(-1.6, -0.2), (0.2, 0.1), (1.6, -0.1)], rng.uniform(0.05, 0.3), colour)
    return figure


def stone(rng: Random, colour: Colour, _: Colour) -> Figure:
    """A polygon."""
    figure = Figure()
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    radii = rng.uniform(0.5, 1, 7)
    figure.add(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), colour)
    return figure


def cart(_: Random, colour: Colour, other: Colour) -> Figure:
    """A box on wheels."""
    figure = Figure()
    figure.box((-1, -0.4), (1, 0.4), colour)
    for x in (-0.6, 0.6):
        figure.oval((x, 0.5), (0.28, 0.28), other)
    return figure


CLUTTER: tuple[Callable[[Random, Colour, Colour], Figure], ...] = (
    disc,
    house,
    tree,
    bush,
    stick,
    stone,
    cart,
)
"""Things that are of no class but share parts with them: discs, windows, points, wheels."""
