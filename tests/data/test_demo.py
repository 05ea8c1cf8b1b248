"""The drawn demo set: true COCO, the same everywhere, neither trivial nor impossible."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradscope import data
from gradscope.data import DataConfig, demo
from gradscope.data.demo import CLASSES, export, write_demo
from gradscope.data.drawing import PIXELS, draw_picture
from gradscope.errors import DataError

DIGEST = """
import hashlib, numpy, sys
sys.path[:0] = {path}
from gradscope.data.drawing import draw_picture
digest = hashlib.sha256()
for name in {classes}:
    digest.update(draw_picture(name, numpy.random.default_rng((3, 4))).image.tobytes())
print(digest.hexdigest())
"""


def test_the_same_in_another_process():
    """Pictures depend on their random numbers alone, not on the process or its hash seed."""
    digest = hashlib.sha256()
    for name in CLASSES:
        digest.update(draw_picture(name, np.random.default_rng((3, 4))).image.tobytes())
    code = DIGEST.format(classes=CLASSES, path=sys.path)
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.strip() == digest.hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six training and three validation pictures of each class."""
    root = tmp_path_factory.mktemp("demo")
    write_demo(root, {"train": 6, "val": 3})
    return root


def test_counts(folder, tmp_path):
    """The folder has the pictures asked for, and the COCO loader finds them all."""
    splits = data.load(DataConfig(source="coco", root=folder), cache_dir=tmp_path)
    assert splits.classes == CLASSES
    assert splits.counts == {
        "train": dict.fromkeys(CLASSES, 6),
        "val": dict.fromkeys(CLASSES, 3),
    }
    assert splits.left_out == {"train": {}, "val": {}}


def test_demo_is_read_back_by_the_coco_loader(folder, tmp_path):
    """source: demo gives exactly the pixels that the written folder gives."""
    limits = {"train_per_class": 6, "val_per_class": 3}
    drawn = data.load(DataConfig(**limits), cache_dir=tmp_path)
    read = data.load(DataConfig(source="coco", root=folder, **limits), cache_dir=tmp_path)
    assert drawn.fingerprint == read.fingerprint
    assert torch.equal(drawn.train.images, read.train.images)


def test_pictures_do_not_depend_on_the_number(folder, tmp_path):
    """A smaller set of fewer classes has the same first pictures; another seed has others."""
    write_demo(tmp_path / "a", {"train": 2, "val": 1}, classes=("cat",))
    write_demo(tmp_path / "b", {"train": 2, "val": 1}, seed=1, classes=("cat",))
    for name in ("train_cat_00000.jpg", "train_cat_00001.jpg", "val_cat_00000.jpg"):
        first = (folder / "images" / name).read_bytes()
        assert (tmp_path / "a" / "images" / name).read_bytes() == first
        assert (tmp_path / "b" / "images" / name).read_bytes() != first
    assert len(list((tmp_path / "a" / "images").iterdir())) == 3


def test_annotations_are_true(folder):
    """Sizes are those of the files, boxes lie inside them and hold their area; ids match."""
    found = json.loads((folder / "annotations" / "instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert list(names.items()) == [
        (5, "airplane"),
        (6, "bus"),
        (17, "cat"),
        (18, "dog"),
        (59, "pizza"),
    ]
    images = {image["id"]: image for image in found["images"]}
    assert len(images) == len(found["annotations"]) == 30
    for annotation in found["annotations"]:
        image = images[annotation["image_id"]]
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        assert names[annotation["category_id"]] in image["file_name"]
        left, top, width, height = annotation["bbox"]
        assert 0 <= left < left + width <= PIXELS
        assert 0 <= top < top + height <= PIXELS
        assert 0.03 * width * height < annotation["area"] <= width * height


@pytest.mark.parametrize("name", CLASSES)
def test_the_box_is_where_the_object_is(name, monkeypatch):
    """Without scene and camera, all that differs from the ground lies in the box, and fills it."""
    from gradscope.data import drawing

    ground = Image.new("RGB", (2 * PIXELS, 2 * PIXELS), (255, 0, 255))
    monkeypatch.setattr(drawing, "_background", lambda rng: ground.copy())
    monkeypatch.setattr(drawing, "_photographed", lambda image, rng: image)
    empty = type("Nothing", (), {"parts": [(np.zeros((3, 2)) + 1e6, (0, 0, 0))]})()
    monkeypatch.setattr(drawing, "_clutter", lambda rng: empty)
    for i in range(5):
        picture = draw_picture(name, np.random.default_rng(i))
        drawn = (np.asarray(picture.image) != (255, 0, 255)).any(axis=2)
        ys, xs = np.nonzero(drawn)
        left, top, width, height = picture.box
        assert abs(xs.min() - left) <= 1
        assert abs(ys.min() - top) <= 1
        assert abs(xs.max() + 1 - left - width) <= 1
        assert abs(ys.max() + 1 - top - height) <= 1
        assert abs(drawn.sum() - picture.area) <= 0.15 * drawn.sum() + 20


def test_export(tmp_path):
    """A folder that holds something is not written into, an unknown class is named."""
    (tmp_path / "mine.txt").write_text("precious")
    small = DataConfig(train_per_class=1, val_per_class=1)
    with pytest.raises(DataError, match="not empty; name a new one"):
        export(tmp_path, small)
    with pytest.raises(DataError, match="cannot be written"):
        export(tmp_path / "mine.txt" / "below", small)
    with pytest.raises(DataError, match="unknown class 'cats'; did you mean 'cat'"):
        export(tmp_path / "new", DataConfig(classes=("cats",)))


def test_nothing_is_drawn_for_an_unknown_class(tmp_path):
    """The mistake is told before any work."""
    with pytest.raises(DataError, match="did you mean 'dog'"):
        data.load(DataConfig(classes=("dogg",)), lambda *_: pytest.fail("work"), tmp_path)


def test_a_change_of_the_drawing_draws_again(tmp_path, monkeypatch):
    """The cache goes stale when the code that draws changes."""
    from gradscope.data.demo import DemoSet

    tiny = DataConfig(train_per_class=1, val_per_class=1)
    data.load(tiny, cache_dir=tmp_path)
    data.load(tiny, lambda *_: pytest.fail("no hit"), tmp_path)
    monkeypatch.setattr(DemoSet, "content", lambda self: "another drawing")
    steps = []
    data.load(tiny, lambda *step: steps.append(step), tmp_path)
    assert ("drawing train images", 5, 5) in steps


def test_every_module_that_draws_is_in_the_digest():
    """What the drawing imports of its room, directly or not, is what stale caches are told by."""
    room, found, left = Path(demo.__file__).parent, {"demo"}, ["drawing"]
    while left:
        name = left.pop()
        found.add(name)
        text = (room / f"{name}.py").read_text()
        left += set(re.findall(r"^from gradscope\.data\.(\w+)", text, re.MULTILINE)) - found
    assert found == set(demo._DRAWN_BY)
    assert len(found) > 3


def test_drawn_files_do_not_stay(tmp_path, monkeypatch):
    """The COCO folder is a temporary one, even when reading it fails; only arrays are kept."""
    temporary, cache = tmp_path / "temporary", tmp_path / "cache"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    seen = []
    config = DataConfig(train_per_class=1, val_per_class=1)

    def look(what, done, total):
        seen.extend(temporary.rglob("*.jpg"))
        if what == "reading val images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.load(config, look, cache)
    assert seen
    data.load(config, None, cache)
    assert not list(temporary.iterdir())
    assert not list(cache.rglob("*.jpg"))


def fitted(model, splits, epochs, batch=32) -> float:
    """Validation accuracy of a model after a few epochs of Adam."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(splits.train)).split(batch):
            images, labels = splits.train.batch(indices)
            loss = nn.functional.cross_entropy(model(images.float() / 127.5 - 1), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        guesses = model.eval()(splits.val.images.float() / 127.5 - 1).argmax(1)
    return float((guesses == splits.val.labels).float().mean())


def test_colour_alone_does_not_tell_the_classes(tmp_path):
    """A linear model of the mean colours stays far from what shapes would give."""
    splits = data.load(DataConfig(train_per_class=100, val_per_class=60), cache_dir=tmp_path)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    assert fitted(model, splits, epochs=20) < 0.5


@pytest.mark.slow
def test_a_small_network_learns_it_but_not_all(tmp_path):
    """A plain small network ends between 50 % and 95 %: above chance, below a solved problem."""
    splits = data.load(DataConfig(), cache_dir=tmp_path)
    layers = []
    for fan_in, fan_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 5))
    assert 0.5 < fitted(model, splits, epochs=6) < 0.95
