"""Which images are drawn: properties of the draw, of the split, and of names in messages."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.data import DataConfig
from gradscope.data.source import Item, Listing, choose, draw, shown, split_off, wanted_classes
from gradscope.errors import DataError

ITEMS = st.lists(
    st.builds(Item, st.text("abc/", min_size=1), st.sampled_from(["cat", "dog"])),
    unique_by=lambda item: item.name,
    max_size=40,
)


@given(ITEMS, st.integers(0, 50), st.integers(0, 50), st.text(max_size=3), st.randoms())
def test_draw(items, fewer, more, salt, random):
    """A draw has the size asked for, is nested in larger ones, and ignores the order."""
    fewer, more = sorted((fewer, more))
    small, large = set(draw(items, fewer, salt)), set(draw(items, more, salt))
    assert len(small) == min(fewer, len(items))
    assert small <= large <= set(items)
    shuffled = random.sample(items, len(items))
    assert set(draw(shuffled, fewer, salt)) == small
    assert draw(items, None, salt) == items


def test_draw_is_fair():
    """Over many seeds each of ten items is drawn about as often: 5 standard deviations."""
    items = [Item(f"{i:03d}.jpg", "cat") for i in range(10)]
    counts = Counter(item.name for seed in range(2000) for item in draw(items, 3, f"{seed}/train"))
    assert all(abs(count - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for count in counts.values())


@given(ITEMS, st.integers(0, 3))
def test_split_off(items, seed):
    """Each image goes to one side; of n > 1 images of a class max(1, n / 5) go to validation."""
    found = split_off(items, seed)
    assert sorted(found["train"] + found["val"], key=items.index) == items
    for name in ("cat", "dog"):
        n = sum(item.label == name for item in items)
        expected = max(1, round(n / 5)) if n > 1 else 0
        assert sum(item.label == name for item in found["val"]) == expected


def listing(train, val, **given) -> Listing:
    """So many images per class and split."""
    items = {
        split: [Item(f"{name}{i}", name) for name, n in counts.items() for i in range(n)]
        for split, counts in (("train", train), ("val", val))
    }
    return Listing(("a", "b", "c"), items, lambda *_: None, **given)


def test_choose_limits():
    """Limits hold per class and split, and what is not drawn is counted."""
    found = choose(
        listing({"a": 5, "b": 3, "c": 1}, {"a": 2, "b": 2, "c": 2}),
        DataConfig(train_per_class=2, val_per_class=1),
        "here",
    )
    assert Counter(item.label for item in found.items["train"]) == {"a": 2, "b": 2, "c": 1}
    assert Counter(item.label for item in found.items["val"]) == {"a": 1, "b": 1, "c": 1}
    assert found.left_out == {"train": {"not drawn": 4}, "val": {"not drawn": 3}}


@pytest.mark.parametrize(
    ("train", "val", "classes", "message"),
    [
        ({"a": 1, "b": 1}, {"a": 1}, (), "class 'b' has no image in the val split"),
        ({"b": 1}, {"a": 1, "b": 1}, (), "class 'a' has no image in the train split"),
        (
            {"a": 1, "b": 1},
            {"a": 1, "b": 1},
            ("a", "b", "c"),
            "class 'c' has no image in the train",
        ),
        ({"a": 1}, {"a": 1}, (), "a classifier needs two classes with images, there are 1"),
    ],
)
def test_choose_refuses(train, val, classes, message):
    """Classes without images stop, but for those that nobody named and no split has."""
    with pytest.raises(DataError, match=f"^here: {message}"):
        choose(listing(train, val), DataConfig(classes=classes), "here")


def test_the_message_tells_what_was_left_out():
    """A class that is empty because of overlaps gets the option that helps."""
    left_out = {"train": Counter({"two of the classes (overlap: drop)": 3})}
    with pytest.raises(DataError, match=r"left out: 3 two of .* or set data\.overlap: largest"):
        choose(listing({"a": 1}, {"a": 1, "b": 1}, left_out=left_out), DataConfig(), "here")


def test_wanted_classes():
    """All, in the order of the source, or those named, in the order given."""
    assert wanted_classes((), ("b", "a"), "here") == ("b", "a")
    assert wanted_classes(("a",), ("b", "a"), "here") == ("a",)
    with pytest.raises(DataError, match="'a' is named twice"):
        wanted_classes(("a", "a"), ("a",), "here")


def test_shown():
    """Names from outside lose control characters and length."""
    assert shown(["a\x1b[31mb\n"]) == "a?[31mb?"
    assert shown("abcdefg", most=2) == "a, b and 5 more"
