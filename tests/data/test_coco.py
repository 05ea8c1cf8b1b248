"""COCO folders: which image has which class, and where the files may lie."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradscope import data
from gradscope.data import DataConfig
from gradscope.data.coco import CocoFolder, assign
from gradscope.errors import DataError


def config(root, **given) -> DataConfig:
    """A COCO folder at a size that keeps tests quick."""
    return DataConfig(source="coco", root=root, **({"size": 4} | given))


def test_images_and_labels_are_those_of_the_file(small, cache):
    """Each image arrives with its colour and the class that its annotation names."""
    splits = data.load(config(small.root), cache_dir=cache)
    assert splits.classes == ("cat", "dog")
    for split, dataset, n in (("train", splits.train, 6), ("val", splits.val, 4)):
        assert dataset.images.dtype == torch.uint8
        assert dataset.images.shape == (n, 3, 4, 4)
        for number in range(n):
            image, label = dataset[number]
            assert label == number % 2
            assert image.float().mean((1, 2)).tolist() == list(small.colour(split, number))


def test_order_of_classes_is_that_of_the_configuration(small, cache):
    """Class indices follow data.classes."""
    splits = data.load(config(small.root, classes=("dog", "cat")), cache_dir=cache)
    assert splits.classes == ("dog", "cat")
    assert splits.train.labels.tolist() == [1, 0] * 3


AREAS = st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1e6), min_size=1)


@given(AREAS)
def test_assign_drop(areas):
    """Only an image with exactly one class has a class."""
    assert assign(areas, "drop") == (next(iter(areas)) if len(areas) == 1 else None)


@given(AREAS)
def test_assign_largest(areas):
    """No class is larger than the winner, and none before it is as large."""
    winner = assign(areas, "largest")
    names = list(areas)
    assert all(areas[winner] >= area for area in areas.values())
    assert all(areas[name] < areas[winner] for name in names[: names.index(winner)])


OBJECTS = st.lists(
    st.tuples(st.sampled_from(["cat", "dog", "pizza"]), st.integers(1, 9).map(float)), max_size=4
)


@given(pictures=st.lists(OBJECTS, max_size=6), overlap=st.sampled_from(["drop", "largest"]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_agree_with_a_plain_count(tiny, pictures, overlap):
    """Classes by pycocotools are those that a loop over the objects finds, without pizza."""
    sure = [[("cat", 1.0)], [("dog", 1.0)]]
    tiny.write({"train": sure + pictures, "val": sure})
    wanted, dropped = [], 0
    for number, objects in enumerate(sure + pictures):
        area = Counter()
        for name, size in objects:
            if name != "pizza":
                area[name] += size
        if len(area) == 2 and overlap == "drop":
            dropped += 1
        elif area:
            best = "dog" if area["dog"] > area["cat"] else "cat"
            wanted.append((f"images/train{number:03d}.png", best))
    source = CocoFolder(tiny.root, config(tiny.root, classes=("cat", "dog"), overlap=overlap))
    with source.opened(lambda *_: None) as listing:
        assert [(item.name, item.label) for item in listing.items["train"]] == wanted
        assert sum(listing.left_out["train"].values()) == dropped


def test_two_classes_are_left_out_and_counted(tiny, cache):
    """An image with a cat and a dog is dropped, or goes to the larger, by total area."""
    both = [("cat", 4.0), ("dog", 3.0), ("dog", 3.0)]
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": [*one, both], "val": one})
    drop = data.load(config(tiny.root), cache_dir=cache)
    assert drop.counts["train"] == {"cat": 1, "dog": 1}
    assert drop.left_out == {"train": {"two of the classes (overlap: drop)": 1}, "val": {}}
    largest = data.load(config(tiny.root, overlap="largest"), cache_dir=cache)
    assert largest.counts["train"] == {"cat": 1, "dog": 2}
    assert largest.left_out == {"train": {}, "val": {}}


def test_area_comes_from_the_box_where_it_is_missing(tiny, cache):
    """Without areas, width times height of the boxes decides."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": [*one, [("cat", 2.0), ("dog", 3.0)]], "val": one})

    def drop_areas(found):
        for annotation in found["annotations"]:
            del annotation["area"]

    tiny.edit("train", drop_areas)
    splits = data.load(config(tiny.root, overlap="largest"), cache_dir=cache)
    assert splits.counts["train"] == {"cat": 1, "dog": 2}


def test_a_crowd_shows_its_class(tiny, cache):
    """A crowd region counts like a single object."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one * 2, "val": one}, crowd=1)
    assert data.load(config(tiny.root), cache_dir=cache).counts["train"] == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("suffix", "images"),
    [
        ("", "images"),
        ("2017", "{split}2017"),
        ("2014", "images/{split}2014"),
        ("2017", "images"),
        ("", "{split}"),
        ("", "images/{split}"),
        ("", "."),
    ],
)
def test_layouts(tiny, cache, suffix, images):
    """The usual places of annotations and images are found."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one, "val": one}, suffix=suffix, images=images)
    splits = data.load(config(tiny.root), cache_dir=cache)
    assert splits.val.images[1].float().mean((1, 2)).tolist() == list(tiny.colour("val", 1))


def test_roboflow_layout(small, cache):
    """Annotations beside the images, in train and valid."""
    for split, folder in (("train", "train"), ("val", "valid")):
        (small.root / folder).mkdir()
        small.annotations(split).rename(small.root / folder / "_annotations.coco.json")
        for path in (small.root / "images").glob(f"{split}*"):
            path.rename(small.root / folder / path.name)
    splits = data.load(config(small.root), cache_dir=cache)
    assert splits.counts == {"train": {"cat": 3, "dog": 3}, "val": {"cat": 2, "dog": 2}}


def test_file_names_may_hold_folders(small, cache):
    """file_name: 'train/x.png' is looked for below the image folder."""
    (small.root / "images" / "deep").mkdir()

    def deepen(found):
        for image in found["images"]:
            path = small.root / "images" / image["file_name"]
            path.rename(path.parent / "deep" / path.name)
            image["file_name"] = f"deep/{path.name}"

    small.edit("val", deepen)
    assert len(data.load(config(small.root), cache_dir=cache).val) == 4


def test_unnamed_empty_categories_are_left_out_with_a_note(small, cache):
    """Nobody asked for pizza, so that it has no images is only worth a note."""
    splits = data.load(config(small.root), cache_dir=cache)
    assert splits.classes == ("cat", "dog")
    assert splits.notes == ("left out, no images: pizza",)


def test_a_leak_is_told(small, cache):
    """The same file in both splits is worth a note."""
    small.annotations("val").write_text(small.annotations("train").read_text())
    notes = data.load(config(small.root), cache_dir=cache).notes
    assert any(
        note.startswith("6 images are in both splits: images/train000.png") for note in notes
    )


def test_prints_nothing(small, cache, capfd):
    """What pycocotools prints is silenced: stdout may be JSON."""
    data.load(config(small.root), cache_dir=cache)
    assert capfd.readouterr().out == ""


def test_fewer_images_per_class(tiny, cache):
    """A limit draws exactly so many, the same each time, others with another seed."""
    one = [[("cat", 5.0)], [("dog", 5.0)]]
    tiny.write({"train": one * 20, "val": one * 3})

    def drawn(n, seed=0):
        limited = config(tiny.root, train_per_class=n, seed=seed)
        splits = data.load(limited, cache_dir=cache)
        assert splits.counts["train"] == {"cat": n, "dog": n}
        assert splits.left_out["train"].get("not drawn", 0) == 40 - 2 * n
        return set(splits.train.images[:, 0, 0, 0].tolist())

    assert drawn(5) < drawn(8) < drawn(20)
    assert drawn(5) != drawn(5, seed=1)


def test_real_images(coco, coco_cache):
    """The folder of real images has the counts that its README states, and those of the JSON."""
    splits = data.load(DataConfig(source="coco", root=coco, size=16), cache_dir=coco_cache)
    assert (len(splits.train), len(splits.val)) == (7203, 2413)
    found = json.loads((coco / "annotations" / "instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert splits.counts["val"] == Counter(names[a["category_id"]] for a in found["annotations"])
    assert splits.left_out == {"train": {}, "val": {}}


def test_an_area_that_largest_needs_is_missing(small, cache):
    """overlap: largest without area and bbox says so."""

    def strip(found):
        found["annotations"][2] |= {"area": None, "bbox": None}

    small.edit("train", strip)
    with pytest.raises(DataError, match=r"annotation 3 has no valid area or bbox.*overlap: drop"):
        data.load(config(small.root, overlap="largest"), cache_dir=cache)
