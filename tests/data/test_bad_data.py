"""Data sets that are wrong in one way each: the message names the place and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gradscope import data
from gradscope.data import DataConfig
from gradscope.errors import DataError


@dataclass(frozen=True)
class Bad:
    """One way in which a small good COCO folder becomes bad."""

    name: str
    bend: Callable[[Any], object]
    """Called with the folder, which holds 6 training images and 4 validation images."""
    place: str
    """What the message must name (regular expression)."""
    remedy: str
    """What it must advise (regular expression)."""
    settings: dict[str, Any] = field(default_factory=dict)


def text(content: str):
    """Write something else into the training annotations."""
    return lambda folder: folder.annotations("train").write_text(content)


def edit(change):
    """Change the parsed training annotations."""
    return lambda folder: folder.edit("train", change)


def image(name: str, content: bytes | None):
    """Replace or remove one image."""

    def bend(folder):
        path = folder.root / "images" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return bend


def cut(folder):
    """Keep the first half of one image."""
    path = folder.root / "images" / "train001.png"
    path.write_bytes(path.read_bytes()[:40])


def no_annotations(folder):
    """Remove both files."""
    for split in ("train", "val"):
        folder.annotations(split).unlink()


def captions(found):
    """What a captions file looks like."""
    return {"images": found["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}


def stray(key, value):
    """An annotation that names what is not there."""
    return edit(lambda found: found["annotations"][2].update({key: value}))


def every(key, value):
    """The same for all annotations."""
    return edit(lambda found: [each.update({key: value}) for each in found["annotations"]] and None)


TRAIN = r"instances_train\.json"

BAD = [
    Bad(
        "no folder",
        lambda folder: folder.root.rename(folder.root.with_name("moved")),
        r"data\.root: .*coco does not exist",
        "give the folder",
    ),
    Bad(
        "a file as folder",
        lambda folder: None,
        r"instances_train\.json is no folder",
        "give the folder",
        {"root": "annotations/instances_train.json"},
    ),
    Bad("no root", lambda folder: None, r"data\.root", "set data.root: FOLDER", {"root": None}),
    Bad(
        "no annotations",
        no_annotations,
        r"data\.root: .*coco holds no COCO annotations",
        r"expected annotations/instances_train\.json",
    ),
    Bad(
        "one split only",
        lambda folder: folder.annotations("val").unlink(),
        r"instances_val\.json: no such file",
        "add the annotations of the other",
    ),
    Bad("empty file", text(""), TRAIN + ": no JSON", "download or export the file again"),
    Bad("cut file", text('{"images": [{"id": 1,'), TRAIN + ": no JSON", "export the file again"),
    Bad(
        "binary file",
        lambda folder: folder.annotations("train").write_bytes(b"\x89PNG\xff\x00"),
        TRAIN + ": no JSON",
        "export the file again",
    ),
    Bad("deep nesting", text("[" * 100_000), TRAIN + ": no JSON", "export the file again"),
    Bad("a list", text("[]"), TRAIN + ".*no list 'images'", "give an instances_"),
    Bad(
        "captions", edit(captions), TRAIN + ".*no list 'categories'", r"give an instances_\*\.json"
    ),
    Bad(
        "image without id",
        edit(lambda found: found["images"][1].pop("id") and None),
        TRAIN + r": images\[1\] has no valid 'id'",
        "each entry .* has one, a number",
    ),
    Bad(
        "image without name",
        edit(lambda found: found["images"][3].update(file_name=7)),
        TRAIN + r": images\[3\] has no valid 'file_name'",
        "has one, text",
    ),
    Bad(
        "category of another kind",
        edit(lambda found: found["categories"].append("cow")),
        TRAIN + r": categories\[3\] has no valid 'id'",
        "has one",
    ),
    Bad(
        "annotation without category",
        edit(lambda found: found["annotations"][0].pop("category_id") and None),
        TRAIN + r": annotations\[0\] has no valid 'category_id'",
        "has one",
    ),
    Bad(
        "image id twice",
        edit(lambda found: found["images"][1].update(id=1)),
        TRAIN + ": images id 1 is used twice",
        "give each its own",
    ),
    Bad(
        "unknown image id",
        stray("image_id", 99),
        TRAIN + ": 1 annotations, the first with id 3, name image_id 99",
        "remove them or restore",
    ),
    Bad(
        "unknown category id",
        stray("category_id", 99),
        TRAIN + ".*with id 3, name category_id 99",
        "remove them or restore the categories",
    ),
    Bad(
        "image outside",
        edit(lambda found: found["images"][0].update(file_name="../../secret.png")),
        TRAIN + r": file_name '\.\./\.\./secret\.png' leaves",
        "relative to the folder",
    ),
    Bad(
        "absolute image",
        edit(lambda found: found["images"][0].update(file_name="/etc/passwd")),
        TRAIN + ": file_name '/etc/passwd' leaves",
        "relative to the folder",
    ),
    Bad(
        "unknown class",
        lambda folder: None,
        "COCO folder .*: unknown class 'dgo'",
        "did you mean 'dog'",
        {"classes": ("cat", "dgo")},
    ),
    Bad(
        "class named twice",
        lambda folder: None,
        r"data\.classes: 'cat' is named twice",
        "name each class once",
        {"classes": ("cat", "cat")},
    ),
    Bad(
        "one class",
        lambda folder: None,
        "two classes with images, there are 1",
        r"name more in data\.classes",
        {"classes": ("cat",)},
    ),
    Bad(
        "empty category",
        lambda folder: None,
        "class 'pizza' has no image in the train split",
        r"leave the class out of data\.classes",
        {"classes": ("cat", "pizza")},
    ),
    Bad(
        "no annotation at all",
        edit(lambda found: found.update(annotations=[])),
        "class 'cat' has no image in the train split",
        "add images",
    ),
    Bad(
        "images elsewhere",
        lambda folder: (folder.root / "images").rename(folder.root / "pics"),
        TRAIN + r": none of its first images, such as train000\.png",
        "put the images there",
    ),
    Bad(
        "missing image",
        image("train001.png", None),
        r"1 of the first 2 train images are unreadable.*train001\.png \(no such file\)",
        "restore the files or raise the limit",
    ),
    Bad(
        "empty image", image("train001.png", b""), r"train001\.png \(no image", "restore the files"
    ),
    Bad(
        "web page as image",
        image("val003.png", b"<html>404</html>"),
        r"val images are unreadable.*val003\.png \(no image",
        "raise the limit",
    ),
    Bad("truncated image", cut, r"images/train001\.png", r"data\.max_unreadable_fraction"),
    Bad(
        "image that no file system takes",
        edit(lambda found: found["images"][0].update(file_name="a\0b.png")),
        TRAIN + r": file_name 'a\?b\.png'",
        "relative to the folder",
    ),
    Bad(
        "area below zero",
        edit(lambda found: found["annotations"][1].update(area=-4)),
        TRAIN + ": annotation 2 has no valid area",
        "add the area or set overlap: drop",
        {"overlap": "largest"},
    ),
    Bad(
        "area that is no number",
        edit(lambda found: found["annotations"][1].update(area=None, bbox=[0, 0, "3", {}])),
        TRAIN + ": annotation 2 has no valid area",
        "add the area or set overlap: drop",
        {"overlap": "largest"},
    ),
    Bad(
        "a folder for the demo set",
        lambda folder: None,
        r"data\.root: source 'demo' takes no folder",
        r"set data\.source: coco",
        {"source": "demo"},
    ),
    Bad(
        "arguments for a folder",
        lambda folder: None,
        r"data\.args: source 'coco' takes none",
        "leave them out",
        {"args": {"n": 1}},
    ),
    Bad(
        "unknown source",
        lambda folder: None,
        r"data\.source: unknown source 'coko'",
        "did you mean 'coco'",
        {"source": "coko", "root": None},
    ),
    Bad(
        "unknown source of a folder",
        lambda folder: None,
        r"data\.source: unknown source 'coko'",
        "did you mean 'coco'",
        {"source": "coko"},
    ),
    Bad(
        "no such home folder",
        lambda folder: None,
        r"data\.root: ~nobody-of-this-name/coco starts at a home folder that does not exist",
        "give the whole path",
        {"root": Path("~nobody-of-this-name/coco")},
    ),
    Bad(
        "a file listed twice",
        edit(lambda found: found["images"][1].update(file_name="train000.png")),
        r"instances_train\.json: file_name 'train000\.png' belongs to 2 images",
        "list each file once",
    ),
    Bad(
        "unknown source with arguments",
        lambda folder: None,
        r"data\.source: unknown source 'my_module\.factory'",
        "or package.module:factory",
        {"source": "my_module.factory", "args": {"n": 1}, "root": None},
    ),
    Bad(
        "no class folders",
        lambda folder: (
            [path.unlink() for path in folder.root.rglob("*.*")]
            and [path.rmdir() for path in folder.root.iterdir()]
        ),
        r"data\.root: .*coco holds no class folders",
        "train/CLASS and val/CLASS",
        {"source": "folder"},
    ),
    Bad(
        "half of the class folders",
        lambda folder: (folder.root / "train" / "a").mkdir(parents=True),
        "holds train but no val folder",
        "add val/CLASS",
        {"source": "folder"},
    ),
    Bad(
        "class folders without images",
        lambda folder: None,
        "two classes with images, there are 0",
        r"name more",
        {"source": "folder", "root": "annotations/.."},
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_bad_data(small, cache, bad):
    """One DataError on one line, with the place and the remedy; nothing was cached."""
    settings = {"source": "coco", "root": ""} | bad.settings
    if isinstance(settings["root"], str):
        settings["root"] = small.root / settings["root"]
    if bad.name == "class folders without images":
        for path in small.root.rglob("*.png"):
            path.unlink()
    bad.bend(small)
    with pytest.raises(DataError) as told:
        data.load(DataConfig(size=4, **settings), cache_dir=cache)
    message = str(told.value)
    assert re.search(bad.place, message), message
    assert re.search(bad.remedy, message), message
    assert "\n" not in message
    assert not list(cache.rglob("manifest.json"))


def test_the_good_folder_is_good(small, cache):
    """What the cases bend loads, and a limit that is not reached lets images go missing."""
    (small.root / "images" / "train001.png").unlink()
    loose = DataConfig(source="coco", root=small.root, size=4, max_unreadable_fraction=0.2)
    splits = data.load(loose, cache_dir=cache)
    assert splits.counts["train"] == {"cat": 3, "dog": 2}
    assert splits.left_out["train"] == {"unreadable": 1}
    assert splits.notes[-1] == "train: 1 unreadable: images/train001.png (no such file)"
    assert len(json.dumps(splits.counts)) > 0


def test_the_limit_is_a_share(tiny, cache):
    """Exactly the stated share may be unreadable, one more may not."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one * 5, "val": one})
    loose = DataConfig(source="coco", root=tiny.root, size=4, max_unreadable_fraction=0.2)
    for name in ("train000.png", "train009.png"):
        (tiny.root / "images" / name).unlink()
    assert data.load(loose, cache_dir=cache).left_out["train"] == {"unreadable": 2}
    (tiny.root / "images" / "train005.png").unlink()
    with pytest.raises(DataError, match=r"max_unreadable_fraction = 0\.2"):
        data.load(loose, cache_dir=cache)


def test_a_class_that_loses_its_last_image(tiny, cache):
    """However loose the limit, a class must keep an image."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one, "val": one})
    (tiny.root / "images" / "val001.png").unlink()
    loose = DataConfig(source="coco", root=tiny.root, size=4, max_unreadable_fraction=1)
    with pytest.raises(
        DataError, match=r"'dog' has no image in the val split \(left out: 1 unread"
    ):
        data.load(loose, cache_dir=cache)


def test_a_cache_that_cannot_be_written(small, tmp_path):
    """The message names the folder and the variable."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/coco-.*: cannot write the cache.*GRADSCOPE_CACHE"):
        data.load(DataConfig(source="coco", root=small.root), cache_dir=tmp_path / "file")
