"""Images of every kind become square 8-bit RGB."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gradscope.data.decode import read_image, to_square, to_tensor
from gradscope.data.source import UnreadableError


def as_image(tensor) -> np.ndarray:
    """Height, width, channels: the layout of Pillow and numpy."""
    return tensor.permute(1, 2, 0).numpy()


def second_decoder(path) -> torch.Tensor:
    """The decoder of torchvision, at full size."""
    io = pytest.importorskip("torchvision.io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer releases
        return io.decode_image(str(path), io.ImageReadMode.RGB)


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGB", "a.png", {}),
        ("RGB", "a.jpg", {"quality": 95}),
        ("CMYK", "a.jpg", {"quality": 95}),
        ("L", "a.jpg", {"quality": 95}),
        ("L", "a.png", {}),
        ("LA", "a.png", {}),
        ("RGBA", "a.png", {}),
        ("P", "a.png", {}),
        ("P", "a.gif", {}),
        ("1", "a.png", {}),
        ("RGB", "a.webp", {"lossless": True}),
    ],
)
def test_agrees_with_a_second_decoder(tmp_path, noise, mode, name, options):
    """At full size, pixels are those that torchvision's decoder gives."""
    square = Image.fromarray(noise[:48, :48]).convert(mode)
    square.save(tmp_path / name, **options)
    ours = read_image(tmp_path / name, 48)
    difference = (ours.int() - second_decoder(tmp_path / name).int()).abs()
    assert difference.max() <= (8 if name.endswith("jpg") else 0)
    assert difference.float().mean() < 1


def test_transparent_palette_and_formats_without_second_decoder(tmp_path, noise):
    """Transparency is dropped; BMP and TIFF are read too."""
    square = Image.fromarray(noise[:48, :48])
    for name in ("a.bmp", "a.tiff"):
        square.save(tmp_path / name)
        assert (as_image(read_image(tmp_path / name, 48)) == noise[:48, :48]).all()
    palette = square.convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    expected = np.asarray(palette.convert("RGB"))
    assert (as_image(read_image(tmp_path / "a.png", 48)) == expected).all()


def test_sixteen_bits(tmp_path):
    """A 16-bit greyscale PNG keeps its upper byte instead of saturating."""
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png", 64)
    assert (as_image(image) == (ramp >> 8)[..., None]).all()
    assert to_tensor(Image.fromarray(ramp), rgb=False).shape == (1, 64, 64)


def test_resizing_averages(tmp_path):
    """Antialiased: a fine chequerboard shrinks to the grey between, not to black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    image = read_image(tmp_path / "board.png", 16).float()
    assert (image[:, 2:-2, 2:-2] - 127.5).abs().max() <= 1


def test_resizing_agrees_with_pillow(noise):
    """Bilinear with antialiasing is what Pillow's resize does."""
    ours = as_image(to_square(torch.from_numpy(noise.copy()).permute(2, 0, 1), 20)).astype(int)
    theirs = np.asarray(Image.fromarray(noise).resize((20, 20), Image.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() <= 1


def test_a_large_jpeg_is_the_same_picture(tmp_path, noise):
    """The quick decoding of large JPEGs changes no pixel by much."""
    Image.fromarray(noise).resize((1280, 960)).save(tmp_path / "large.jpg", quality=95)
    quick = read_image(tmp_path / "large.jpg", 32).float()
    slow = to_square(second_decoder(tmp_path / "large.jpg"), 32).float()
    assert (quick - slow).abs().max() <= 6


def test_orientation(tmp_path):
    """An image that a camera stored lying on its side is turned upright."""
    sideways = np.zeros((32, 32, 3), np.uint8)
    sideways[:16] = 255  # the upper half is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to see it upright
    Image.fromarray(sideways).save(tmp_path / "camera.png", exif=exif)
    image = read_image(tmp_path / "camera.png", 32)
    assert image[:, :, 16:].float().mean() > 250  # the right half
    assert image[:, :, :16].float().mean() < 5


def test_unreadable(tmp_path, noise):
    """Missing, empty, cut, foreign and floating-point files say why in a few words."""
    jpeg, png = tmp_path / "cut.jpg", tmp_path / "cut.png"
    for path in (jpeg, png):
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    for name, why in {
        "gone.jpg": "no such file",
        "empty.jpg": "no image",
        "page.jpg": "no image",
        "cut.jpg": "(?i)truncated",
        "cut.png": r"\w",
        "float.tiff": "floating-point",
        ".": "directory",
    }.items():
        with pytest.raises(UnreadableError, match=why) as told:
            read_image(tmp_path / name, 8)
        assert str(told.value)
