"""What the demo set shows: the five classes, as polygons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradscope.data.animals import cat, dog
from gradscope.data.figure import Figure, Random, any_colour, near


def airplane(rng: Random) -> Figure:
    """Seen from the side, or from above or below."""
    figure = Figure()
    body = near((210, 215, 225), rng, 30) if rng.random() < 0.8 else any_colour(rng)
    wing, trim = near(body, rng, 45), any_colour(rng)
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
    figure.oval((-0.05, 0.22), (0.14, 0.06), near(wing, rng, 40))
    return figure


def bus(rng: Random) -> Figure:
    """Seen from the side or from the front."""
    figure = Figure()
    paint, glass = any_colour(rng), near((60, 80, 100), rng, 45)
    if rng.random() < 0.35:  # from the front
        figure.box((-0.62, -0.9), (0.62, 0.72), paint)
        figure.box((-0.54, -0.62), (0.54, 0.08), glass)
        figure.box((-0.4, -0.84), (0.4, -0.68), any_colour(rng))
        for side in (-1, 1):
            figure.oval((side * 0.42, 0.42), (0.11, 0.09), (245, 240, 190))
            figure.box((side * 0.45 - 0.12, 0.7), (side * 0.45 + 0.12, 0.92), (25, 25, 28))
            figure.box((side * 0.72 - 0.07, -0.5), (side * 0.72 + 0.07, -0.15), (30, 30, 30))
        figure.box((-0.3, 0.35), (0.3, 0.5), near(paint, rng, 60))
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


def pizza(rng: Random) -> Figure:
    """Whole, with a slice missing, or one slice."""
    figure = Figure()
    crust, cheese = near((200, 145, 80), rng, 30), near((240, 200, 100), rng, 30)
    sauce = near((190, 60, 40), rng, 25)
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
        figure.oval((x, y), (radius, radius * rng.uniform(0.6, 1)), near(chosen[i % 2], rng, 20))
    return figure


FIGURES: dict[str, Callable[[Random], Figure]] = {
    "airplane": airplane,
    "bus": bus,
    "cat": cat,
    "dog": dog,
    "pizza": pizza,
}
"""Class -> how it is drawn."""
