"""Class folders, with splits and without."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from gradscope import data
from gradscope.data import DataConfig
from gradscope.errors import DataError


def fill(root, counts, *, suffix=".png"):
    """Write so many images of one colour each: folder -> count."""
    for shade, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6, 5), (40 * shade, i, 7)).save(root / folder / f"{i:03d}{suffix}")
    return root


def load(root, cache, **given):
    """Load at a size that keeps tests quick."""
    return data.load(DataConfig(source="folder", root=root, size=4, **given), cache_dir=cache)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path, cache, val):
    """train/CLASS and val/CLASS are what they say, classes in alphabetic order."""
    counts = {"train/b": 4, "train/a": 3, f"{val}/b": 2, f"{val}/a": 1}
    splits = load(fill(tmp_path / "set", counts), cache)
    assert splits.classes == ("a", "b")
    assert splits.counts == {"train": {"a": 3, "b": 4}, "val": {"a": 1, "b": 2}}
    assert splits.train.images[:, 0, 0, 0].tolist() == [40] * 3 + [0] * 4


def test_a_fifth_is_set_aside(tmp_path, cache):
    """Without splits each class gives a fifth for validation; nothing is lost or in both."""
    root = fill(tmp_path / "set", {"a": 20, "b": 10, "c": 2})
    splits = load(root, cache)
    assert splits.counts == {
        "train": {"a": 16, "b": 8, "c": 1},
        "val": {"a": 4, "b": 2, "c": 1},
    }
    pixels = torch.cat([splits.train.images, splits.val.images])[:, :2, 0, 0]
    assert len({tuple(pixel) for pixel in pixels.tolist()}) == 32
    other = load(root, cache, seed=1)
    assert other.counts == splits.counts
    assert not torch.equal(other.val.images, splits.val.images)


def test_agrees_with_torchvision(tmp_path, cache):
    """Classes and their images are those that torchvision's ImageFolder finds."""
    folder = pytest.importorskip("torchvision.datasets")
    root = fill(tmp_path / "set", {"train/y": 3, "train/x": 2, "val/x": 1, "val/y": 1})
    (root / "train" / "x" / "deep").mkdir()
    Image.new("RGB", (6, 5), (9, 9, 9)).save(root / "train" / "x" / "deep" / "z.PNG")
    (root / "train" / "x" / "notes.txt").write_text("no image")
    reference = folder.ImageFolder(root / "train")
    splits = load(root, cache)
    assert splits.classes == tuple(reference.classes)
    assert sorted(splits.train.labels.tolist()) == sorted(reference.targets)


def test_new_and_renamed_images_are_noticed(tmp_path, cache):
    """The cache sees a file that was added, and one that moved to another class."""
    root = fill(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    load(root, cache)
    Image.new("RGB", (6, 5), (1, 1, 1)).save(root / "train" / "a" / "new.png")
    assert load(root, cache).counts["train"] == {"a": 3, "b": 2}
    (root / "train" / "a" / "new.png").rename(root / "train" / "b" / "new.png")
    assert load(root, cache).counts["train"] == {"a": 2, "b": 3}


def test_a_hit_reads_no_image(tmp_path, cache, monkeypatch):
    """The second call opens no image."""
    root = fill(tmp_path / "set", {"a": 5, "b": 5})
    first = load(root, cache)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("read"))
    assert load(root, cache).fingerprint == first.fingerprint


def test_chosen_classes(tmp_path, cache):
    """Folders that were not asked for are passed over; unknown ones are named."""
    root = fill(tmp_path / "set", {"a": 5, "b": 5, "c": 5, ".hidden": 1})
    assert load(root, cache, classes=("c", "a")).classes == ("c", "a")
    with pytest.raises(DataError, match=r"unknown class 'd'.*valid: a, b, c$"):
        load(root, cache, classes=("a", "d"))
