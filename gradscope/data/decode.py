"""read_image(): one image file as a square uint8 tensor; the only place that decodes images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscope.data.source import UnreadableError
from gradscope.errors import one_line

if TYPE_CHECKING:
    from PIL.Image import Image


def read_image(path: Path, size: int) -> Tensor:
    """Decode an image as RGB and resize it to a square, with antialiasing.

    Any format that Pillow reads, the decoder that torchvision's own data sets use. Greyscale,
    palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped, of an animation the
    first frame counts, and the EXIF orientation is applied. The sides are scaled independently.

    Args:
        path: the file.
        size: height and width of the result, in pixels.

    Returns:
        uint8 (3, size, size).

    Raises:
        UnreadableError: the file is missing, truncated or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # A JPEG is decoded at 1/2, 1/4 or 1/8 as long as twice the size is left to average.
            image.draft(None, (2 * size, 2 * size))
            return to_square(to_tensor(upright(image), rgb=True), size)
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise UnreadableError(_reason(error)) from error


def upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def to_tensor(image: Image, *, rgb: bool) -> Tensor:
    """A Pillow image as a uint8 tensor.

    Args:
        image: of any mode but floating point.
        rgb: always three channels; else greyscale stays at one.

    Returns:
        uint8 (channels, height, width).

    Raises:
        UnreadableError: the pixels are floating point, whose range is unknown.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    if image.mode == "F":
        raise UnreadableError("floating-point pixels")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        wide: Tensor = pil_to_tensor(image)
        wide = wide.to(torch.int64)
        grey = (wide // 256).clamp(0, 255).to(torch.uint8)
        return grey.repeat(3, 1, 1) if rgb else grey
    if "transparency" in image.info:
        image = image.convert("RGBA")
    is_grey = image.mode in {"1", "L", "LA", "La"} and not rgb
    tensor: Tensor = pil_to_tensor(image.convert("L" if is_grey else "RGB"))
    return tensor


def to_square(image: Tensor, size: int) -> Tensor:
    """Resize a uint8 image (channels, height, width) to size x size, bilinear, antialiased."""
    from torchvision.transforms.v2.functional import resize

    resized: Tensor = resize(image, [size, size], antialias=True)
    return resized


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "no image, or an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = one_line(error) or type(error).__name__
    return text[:80]
