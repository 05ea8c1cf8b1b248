"""The cache: a hit reads no image, a change is noticed, damage is mended, processes share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradscope import data
from gradscope.data import DataConfig
from gradscope.errors import DataError


def config(root, **given) -> DataConfig:
    """A COCO folder at a size that keeps tests quick."""
    return DataConfig(source="coco", root=root, **({"size": 4} | given))


def entry(cache):
    """The only entry."""
    (found,) = cache.iterdir()
    return found


def same(a, b) -> bool:
    """Whether two splits hold the same images, labels and facts."""
    pairs = ((a.train, b.train), (a.val, b.val))
    return all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs
    ) and (a.classes, a.counts, a.left_out, a.notes, a.fingerprint, a.source) == (
        b.classes,
        b.counts,
        b.left_out,
        b.notes,
        b.fingerprint,
        b.source,
    )


@pytest.fixture
def no_reading(monkeypatch):
    """From now on neither an image nor annotations may be read; call it to start."""

    def forbid():
        from gradscope.data import coco

        def refuse(*_):
            pytest.fail("the cache was passed by")

        monkeypatch.setattr(Image, "open", refuse)
        monkeypatch.setattr(coco, "_checked", refuse)

    return forbid


def test_a_hit_reads_nothing(small, cache, no_reading):
    """The second call maps what the first one wrote, and reports no progress."""
    steps = []
    first = data.load(config(small.root), lambda *step: steps.append(step), cache)
    assert ("reading train images", 6, 6) in steps
    assert ("reading val images", 4, 4) in steps
    no_reading()
    second = data.load(config(small.root), lambda *_: pytest.fail("progress on a hit"), cache)
    assert same(first, second)


def test_the_check_of_the_hit_can_fail(small, cache, no_reading):
    """Without a cache the same call does read."""
    no_reading()
    with pytest.raises(pytest.fail.Exception, match="passed by"):
        data.load(config(small.root), cache_dir=cache)


def test_images_are_mapped_and_safe(small, cache):
    """Images are a view of the file, and writing to them does not reach it."""
    images = data.load(config(small.root), cache_dir=cache).train.images
    if sys.platform == "linux":
        address = images.data_ptr()
        with Path("/proc/self/maps").open() as maps:
            ranges = [line.split() for line in maps if ".u8" in line]
        assert any(
            int(start, 16) <= address < int(end, 16)
            for start, end in (fields[0].split("-") for fields in ranges)
        )
    before = images.clone()
    images.zero_()
    assert torch.equal(data.load(config(small.root), cache_dir=cache).train.images, before)


def change_image(small):
    """Another picture under the same name."""
    Image.new("RGB", (9, 9), (1, 2, 3)).save(small.root / "images" / "train000.png")


def touch_image(small):
    """Only the time of change differs: it may be another picture of the same size."""
    os.utime(small.root / "images" / "train000.png", ns=(1, 1))


def remove_image(small):
    """A file is gone."""
    (small.root / "images" / "train000.png").unlink()


def relabel(small):
    """Another class for the first annotation."""
    small.edit("train", lambda found: found["annotations"][0].update(category_id=18))


@pytest.mark.parametrize("change", [change_image, touch_image, remove_image, relabel])
def test_a_change_is_read_again(small, cache, tmp_path, change):
    """After a change the cache gives what a new cache gives."""
    loose = config(small.root, max_unreadable_fraction=0.5)
    data.load(loose, cache_dir=cache)
    change(small)
    assert same(data.load(loose, cache_dir=cache), data.load(loose, cache_dir=tmp_path / "new"))


@pytest.mark.parametrize(
    "setting",
    [{"size": 5}, {"classes": ("dog", "cat")}, {"train_per_class": 2}, {"overlap": "largest"}],
)
def test_each_setting_has_its_own_entry(small, cache, tmp_path, setting):
    """Settings do not meet in the cache."""
    data.load(config(small.root), cache_dir=cache)
    changed = config(small.root, **setting)
    assert same(data.load(changed, cache_dir=cache), data.load(changed, cache_dir=tmp_path / "new"))
    assert len(list(cache.iterdir())) == 2


def arrays(cache):
    """Files of pixels."""
    return sorted(entry(cache).glob("*.u8"))


DAMAGE = {
    "an array is gone": lambda cache: arrays(cache)[0].unlink(),
    "an array is cut": lambda cache: os.truncate(arrays(cache)[0], 10),
    "an array is longer": lambda cache: arrays(cache)[0].write_bytes(
        arrays(cache)[0].read_bytes() + b"x"
    ),
    "an array is empty": lambda cache: arrays(cache)[0].write_bytes(b""),
    "one byte is flipped": lambda cache: flip(arrays(cache)[1]),
    "the manifest is gone": lambda cache: (entry(cache) / "manifest.json").unlink(),
    "the manifest is cut": lambda cache: os.truncate(entry(cache) / "manifest.json", 50),
    "the manifest is a list": lambda cache: (entry(cache) / "manifest.json").write_text("[]"),
    "a key is missing": lambda cache: edit_manifest(cache, lambda found: found.pop("classes")),
    "a label is missing": lambda cache: edit_manifest(
        cache, lambda found: found["splits"]["train"]["labels"].pop()
    ),
    "a label is text": lambda cache: edit_manifest(
        cache, lambda found: found["splits"]["train"].update(labels=["x"] * 6)
    ),
}


def flip(path):
    """Change one byte in the middle."""
    pixels = bytearray(path.read_bytes())
    pixels[len(pixels) // 2] ^= 1
    path.write_bytes(pixels)


def edit_manifest(cache, change):
    """Bend the parsed manifest."""
    path = entry(cache) / "manifest.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_mended(small, cache, damage):
    """A damaged entry is written again, and then is a hit."""
    first = data.load(config(small.root), cache_dir=cache)
    kept = first.train.images.clone()
    damage(cache)
    steps = []
    second = data.load(config(small.root), lambda *step: steps.append(step), cache)
    assert steps
    assert torch.equal(second.train.images, kept)
    assert second.fingerprint == first.fingerprint
    data.load(config(small.root), lambda *_: pytest.fail("not mended"), cache)


def test_what_is_mapped_stays(small, cache):
    """A rebuild does not touch the pixels that another reader has mapped; old arrays go."""
    loose = config(small.root, max_unreadable_fraction=0.5)
    first = data.load(loose, cache_dir=cache)
    kept = first.train.images.clone()
    change_image(small)
    (entry(cache) / "left-by-a-killed-process.tmp").write_bytes(b"x")
    second = data.load(loose, cache_dir=cache)
    assert not torch.equal(second.train.images, kept)
    assert torch.equal(first.train.images, kept)
    assert len(arrays(cache)) == 2
    assert not list(entry(cache).glob("*.tmp"))


def test_nothing_is_kept_of_a_failure(small, cache):
    """A run that stopped half way leaves no half entry behind."""
    remove_image(small)
    with pytest.raises(DataError, match="unreadable"):
        data.load(config(small.root), cache_dir=cache)
    assert not list(entry(cache).glob("*.tmp"))
    assert not list(entry(cache).glob("manifest*"))


def test_an_old_entry_outlives_a_failure(small, cache):
    """When reading again fails, the pixels of the last success stay, and nothing else."""
    data.load(config(small.root), cache_dir=cache)
    kept = arrays(cache)
    path = small.root / "images" / "val003.png"
    picture = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="unreadable"):
        data.load(config(small.root), cache_dir=cache)
    assert arrays(cache) == kept
    path.write_bytes(picture)
    data.load(config(small.root), cache_dir=cache)


LIGHT_HIT = """
import sys
from pathlib import Path
from gradscope import data
data.load(data.DataConfig(source="coco", root=sys.argv[1], size=4), None, Path(sys.argv[2]))
print(sorted({"torchvision", "pycocotools", "PIL", "matplotlib"} & set(sys.modules)))
"""


def test_a_hit_loads_no_library(small, cache):
    """Torchvision, pycocotools and Pillow load only to read images, not to map them."""
    command = [sys.executable, "-c", LIGHT_HIT, str(small.root), str(cache)]
    data.load(config(small.root), cache_dir=cache)
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


RACE = """
import sys
from pathlib import Path
from gradscope import data
root, cache = map(Path, sys.argv[1:])
config = data.DataConfig(source="coco", root=root, size=16)
import torchvision.transforms.v2.functional, pycocotools.coco, PIL.Image
print("ready", flush=True)
sys.stdin.readline()
steps = []
splits = data.load(config, lambda *step: steps.append(step), cache)
print(splits.fingerprint, int(splits.train.images.sum(dtype=int)), bool(steps))
"""


@pytest.mark.slow
def test_processes_at_once(tiny, cache):
    """Two processes that start together agree, and one of them did the work."""
    tiny.write(
        {"train": [[("cat", 5.0)], [("dog", 5.0)]] * 60, "val": [[("cat", 5.0)], [("dog", 5.0)]]}
    )
    command = [sys.executable, "-c", RACE, str(tiny.root), str(cache)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    told = []
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        told.append(racer.communicate(timeout=300)[0].split())
        assert racer.returncode == 0
    assert len({(fingerprint, total) for fingerprint, total, _ in told}) == 1
    expected = sum(sum(tiny.colour("train", number)) * 16 * 16 for number in range(120))
    assert told[0][1] == str(expected)
    assert [worked for *_, worked in told].count("True") == 1


def test_fingerprint_is_of_the_content(small, cache, tmp_path):
    """The same images elsewhere, with other times of change, have the same fingerprint."""
    import shutil

    first = data.load(config(small.root), cache_dir=cache)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small.root, elsewhere, copy_function=shutil.copy)
    assert data.load(config(elsewhere), cache_dir=cache).fingerprint == first.fingerprint
    relabel(small)
    assert data.load(config(small.root), cache_dir=cache).fingerprint != first.fingerprint


def test_default_folder(monkeypatch, tmp_path, small):
    """GRADSCOPE_CACHE names the folder; without it, it is below the home folder."""
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "mine"))
    data.load(config(small.root))
    assert list((tmp_path / "mine").glob("coco-*/manifest.json"))
    monkeypatch.delenv("GRADSCOPE_CACHE")
    assert data.default_cache_dir().parts[-2:] == (".cache", "gradscope")
    monkeypatch.setenv("GRADSCOPE_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(DataError, match=r"GRADSCOPE_CACHE: .* give the whole path"):
        data.default_cache_dir()
