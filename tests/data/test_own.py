"""Data sets of the user's own factory."""

from __future__ import annotations

import textwrap

import pytest
import torch
from PIL import Image

from gradscope import data
from gradscope.data import DataConfig
from gradscope.errors import DataError, ModelError

MODULE = """
    import random
    import numpy
    import torch
    from PIL import Image

    class Images:
        def __init__(self, items, classes=None, targets=None):
            self.items = items
            if classes: self.classes = classes
            if targets: self.targets = targets
        def __len__(self): return len(self.items)
        def __getitem__(self, i):
            item = self.items[i]
            if isinstance(item, Exception): raise item
            return item() if callable(item) else item

    def tensors(n=4, level=100):
        make = lambda n: Images(
            [(torch.full((3, 8, 8), level + i, dtype=torch.uint8), i % 2) for i in range(n)]
        )
        return make(n), make(2)

    def floats():
        return {"train": Images([(torch.full((3, 8, 8), i / 4), i % 2) for i in range(4)]),
                "val": Images([(torch.full((3, 8, 8), i / 4), torch.tensor(i)) for i in range(2)])}

    def pictures():
        items = [(Image.new("RGB", (9, 5), (i, 2, 3)), numpy.int64(i % 2)) for i in range(20)]
        return Images(items, classes=["heads", "tails"], targets=[i % 2 for i in range(20)])

    def grey():
        items = [(Image.new("L", (9, 5), i), i % 2) for i in range(4)]
        return Images(items), Images(items)

    def noisy():
        item = lambda: (torch.rand(3, 8, 8) * random.random() * numpy.random.rand(), 0)
        other = lambda: (torch.rand(3, 8, 8), 1)
        return Images([item, other] * 4), Images([item, other])

    def partly_broken():
        good = [(torch.zeros(3, 8, 8), i % 2) for i in range(9)]
        return Images([ValueError("disk on fire")] + good), Images(good)

    def raising(): raise RuntimeError("no network")
    def nothing(): return None
    def one_value(): return Images([torch.zeros(3, 8, 8)] * 4), Images([])
    def vectors(): return Images([(torch.zeros(8), 0)] * 4), Images([])
    def normalised(): return Images([(torch.zeros(3, 8, 8) - 1, 0)] * 4), Images([])
    def named(): return Images([(torch.zeros(3, 8, 8), "cat")] * 4), Images([])
    def beyond(): return Images([(torch.zeros(3, 8, 8), 7)] * 4, classes=["a"]), Images([])
    def mixed():
        images = Images([(torch.zeros(3, 8, 8), 0), (torch.zeros(1, 8, 8), 1)])
        return images, images
"""


@pytest.fixture
def load(tmp_path, cache, monkeypatch):
    """Write the module into an empty current folder and load what one of its factories returns."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(factory, progress=None, **given):
        config = DataConfig(source=f"{name}:{factory}", **({"size": 8} | given))
        return data.load(config, progress, cache)

    return load


def test_tensors(load):
    """uint8 tensors arrive as they are; classes are numbered."""
    splits = load("tensors")
    assert splits.classes == ("0", "1")
    assert splits.train.images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert splits.train.labels.tolist() == [0, 1, 0, 1]
    assert splits.val.images.shape == (2, 3, 8, 8)


def test_floats_are_scaled(load):
    """Floats in 0..1 become 0..255, to the nearest."""
    assert load("floats").train.images[:, 0, 0, 0].tolist() == [0, 64, 128, 191]


def test_pictures_are_split_and_resized(load):
    """One data set of Pillow images, with classes and targets, is split by class and resized."""
    splits = load("pictures", size=3)
    assert splits.classes == ("heads", "tails")
    assert splits.counts == {"train": {"heads": 8, "tails": 8}, "val": {"heads": 2, "tails": 2}}
    reds = torch.cat([splits.train.images, splits.val.images])[:, 0, 0, 0].tolist()
    assert sorted(reds) == list(range(20))
    assert all(
        red % 2 == label for red, label in zip(reds, splits.train.labels.tolist(), strict=False)
    )
    few = load("pictures", classes=("tails", "heads"), train_per_class=2)
    assert few.counts["train"] == {"tails": 2, "heads": 2}


def test_grey_stays_grey(load):
    """Greyscale images keep one channel: the user's own model may want it so."""
    splits = load("grey")
    assert splits.train.images.shape == (4, 1, 8, 8)
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_arguments_and_cache(load):
    """Arguments reach the factory, equal ones hit the cache, others do not."""
    assert len(load("tensors", args={"n": 6}).train) == 6
    load("tensors", lambda *_: pytest.fail("no hit"), args={"n": 6})
    assert load("tensors", args={"n": 6, "level": 7}).train.images[0, 0, 0, 0] == 7


def test_random_transforms_are_frozen(load):
    """Random images are the same each time, and the caller's generators stay where they are."""
    state = torch.get_rng_state()
    first = load("noisy")
    assert torch.equal(torch.get_rng_state(), state)
    assert first.train.images.float().std() > 1
    load("noisy", lambda *_: pytest.fail("no hit"))


def test_unreadable_samples(load):
    """A sample that raises is left out, counted and named, within the limit."""
    splits = load("partly_broken", max_unreadable_fraction=0.1)
    assert splits.counts["train"] == {"0": 5, "1": 4}
    assert splits.left_out["train"] == {"unreadable": 1}
    assert splits.notes == ("train: 1 unreadable: 0 (ValueError: disk on fire)",)
    with pytest.raises(DataError, match="max_unreadable_fraction"):
        load("partly_broken")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("raising", DataError, "failed with RuntimeError: no network; mend it or data.args"),
        ("nothing", DataError, r"returned a NoneType; it returns a map-style data set"),
        ("one_value", DataError, r"sample 0 is a Tensor; a sample is \(image, class index\)"),
        ("vectors", DataError, r"the image is \(8,\); return a Pillow image or a tensor"),
        ("normalised", DataError, r"pixels of float32 in -1..-1; return uint8, or floats in 0..1"),
        ("named", DataError, "label 'cat'; return the index of the class"),
        ("beyond", DataError, "label 7, but 1 names in 'classes'; labels count from 0"),
        ("mixed", DataError, "image 1 has 1 channels, those before 3; give all images the same"),
        ("tensor", ModelError, "has no 'tensor'; did you mean 'tensors'"),
    ],
)
def test_messages(load, factory, error, message):
    """Each mistake is told with its place and the remedy, on one line."""
    with pytest.raises(error, match=message) as told:
        load(factory)
    assert "\n" not in str(told.value)


def test_wrong_arguments(load):
    """An argument that the factory does not take is told."""
    with pytest.raises(DataError, match=r"unexpected keyword argument 'm'.*data.args"):
        load("tensors", args={"m": 1})


def test_a_set_of_torchvision(cache, tmp_path):
    """Data sets of torchvision are read by their name: FakeData with four classes."""
    pytest.importorskip("torchvision.datasets")
    args = {"size": 12, "image_size": [3, 10, 10], "num_classes": 2}
    config = DataConfig(source="torchvision.datasets:FakeData", size=10, args=args)
    splits = data.load(config, cache_dir=cache)
    assert len(splits.train) + len(splits.val) == 12
    assert isinstance(splits.train.images, torch.Tensor)
    assert Image.fromarray(splits.train.images[0].permute(1, 2, 0).numpy()).size == (10, 10)
