"""Pictures of the demo set: one object in a cluttered scene, drawn from random numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gradscope.data.clutter import CLUTTER
from gradscope.data.figure import Colour, Figure, Points, Random, any_colour, turned
from gradscope.data.figures import FIGURES

PIXELS = 80
"""Height and width of a picture; it is drawn at twice that and averaged."""

_CANVAS = 2 * PIXELS


@dataclass(frozen=True)
class Picture:
    """One drawn picture and where its object is."""

    image: Image.Image
    """RGB, PIXELS x PIXELS."""
    box: tuple[float, float, float, float]
    """Left, top, width, height of the visible part of the object, in pixels."""
    area: float
    """Visible area of the object, in pixels."""


def draw_picture(name: str, rng: Random) -> Picture:
    """Draw one picture of a class.

    Args:
        name: key of `FIGURES`.
        rng: the only source of randomness; equal states give equal pictures.
    """
    canvas = _background(rng)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        _paint(pen, _clutter(rng), _pose(rng, 0.1, 0.25, tilt=3.2))
    mask = Image.new("L", canvas.size)
    figure = FIGURES[name](rng)
    tilt = {"airplane": 0.6, "bus": 0.15, "pizza": 3.2}.get(name, 0.25)
    _paint(pen, figure, _pose(rng, 0.75, 1.0, tilt), ImageDraw.Draw(mask))
    for _ in range(rng.integers(0, 2)):
        _paint(pen, _clutter(rng), _pose(rng, 0.08, 0.2, tilt=3.2), ImageDraw.Draw(mask), seen=0)
    image = _photographed(canvas.reduce(2), rng)
    visible = mask.reduce(2).point(lambda value: 255 if value > 127 else 0)
    left, top, right, bottom = visible.getbbox() or (0, 0, 1, 1)
    area = visible.histogram()[255]
    return Picture(image, (left, top, right - left, bottom - top), float(max(area, 1)))


def _paint(
    pen: ImageDraw.ImageDraw,
    figure: Figure,
    pose: Callable[[Points], Points],
    mask: ImageDraw.ImageDraw | None = None,
    seen: int = 255,
) -> None:
    placed = pose(np.concatenate([points for points, _ in figure.parts]))
    ends = np.cumsum([len(points) for points, _ in figure.parts])[:-1]
    for corners, (_, colour) in zip(np.split(placed, ends), figure.parts, strict=True):
        flat = corners.ravel().tolist()
        pen.polygon(flat, fill=colour)
        if mask is not None:
            mask.polygon(flat, fill=seen)


def _pose(rng: Random, least: float, most: float, tilt: float) -> Callable[[Points], Points]:
    """A random place, size, turn, stretch and reflection; sizes as a share of the picture."""
    size = _CANVAS / 2 * rng.uniform(least, most)
    stretch = rng.uniform(0.8, 1.2)
    mirror = rng.choice((-1.0, 1.0))
    shear = rng.uniform(-0.15, 0.15)
    turn = rng.uniform(-tilt, tilt)
    room = max(_CANVAS / 2 - 0.85 * size, 0.08 * _CANVAS)
    centre = _CANVAS / 2 + rng.uniform(-room, room, 2)

    def place(points: Points) -> Points:
        skewed = points * (mirror * stretch, 1 / stretch)
        skewed[:, 0] += shear * skewed[:, 1]
        return turned(skewed * size, turn) + centre

    return place


def _background(rng: Random) -> Image.Image:
    """Two blended colours, blurred blotches, and sometimes a horizon, stripes or tiles."""
    coarse = rng.uniform(-1, 1, (6, 6, 3)) * rng.uniform(3, 15)
    slope = np.linspace(-1, 1, 6)[:, None, None] * rng.uniform(-20, 20, 3)
    blotches = np.clip(np.array(_muted(rng)) + slope + coarse, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(blotches).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    kind = rng.integers(0, 4)
    if kind == 0:  # a horizon
        height = _CANVAS * rng.uniform(0.4, 0.85)
        pen.rectangle((0, height, _CANVAS, _CANVAS), fill=_muted(rng))
    elif kind == 1:  # stripes or a fence
        step, width, colour = rng.uniform(10, 40), int(rng.integers(1, 12)), _muted(rng)
        upright = rng.random() < 0.5
        for at in np.arange(0, _CANVAS, step):
            line = (at, 0, at, _CANVAS) if upright else (0, at, _CANVAS, at)
            pen.line(line, fill=colour, width=width)
    elif kind == 2:  # tiles or houses
        for _ in range(rng.integers(3, 9)):
            x, y = rng.uniform(0, _CANVAS, 2)
            w, h = rng.uniform(10, 70, 2)
            pen.rectangle((x, y, x + w, y + h), fill=_muted(rng))
    return canvas


def _muted(rng: Random) -> Colour:
    """A colour of walls, roads and skies: grey with a cast."""
    red, green, blue = (rng.uniform(50, 205) + rng.uniform(-18, 18, 3)).astype(int).tolist()
    return red, green, blue


def _clutter(rng: Random) -> Figure:
    thing = CLUTTER[rng.integers(0, len(CLUTTER))]
    return thing(rng, any_colour(rng), any_colour(rng))


def _photographed(image: Image.Image, rng: Random) -> Image.Image:
    """Light, contrast, colour cast, blur and sensor noise."""
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    pixels = np.asarray(image, np.float32)
    gain = rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)
    pixels = (pixels - 128) * gain.astype(np.float32) + 128 + np.float32(rng.uniform(-15, 15))
    if rng.random() < 0.05:  # black and white
        pixels[:] = pixels.mean(axis=2, keepdims=True)
    strength = np.float32(rng.uniform(2, 8))
    pixels += strength * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
