"""What lies about in the demo set: things of no class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradscope.data.figure import Colour, Figure, Random, near


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
        figure.oval((x, y), (0.45, 0.4), near(colour, rng, 15))
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
