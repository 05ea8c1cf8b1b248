"""Figure: polygons in colour, and how they are turned and tinted."""

from __future__ import annotations

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


def near(colour: Colour, rng: Random, spread: float) -> Colour:
    """A colour as another one under other light, shifted by up to so much."""
    shade = rng.uniform(-spread, spread)
    shifts = (shade + rng.uniform(-6, 6, 3)).tolist()
    red, green, blue = (
        min(max(int(c + shift), 0), 255) for c, shift in zip(colour, shifts, strict=True)
    )
    return red, green, blue
