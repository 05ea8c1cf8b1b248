"""A tiny COCO folder that tests write and then bend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IDS = {"cat": 17, "dog": 18, "pizza": 59}


@dataclass
class TinyCoco:
    """A COCO folder under construction; images are of one colour each, known to the test."""

    root: Path

    def write(
        self,
        contents: Mapping[str, Sequence[Sequence[tuple[str, float]]]],
        *,
        suffix: str = "",
        images: str = "images",
        crowd: int = 0,
    ) -> Path:
        """Write both splits: split -> images -> (class, area) of each object."""
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        for split, pictures in contents.items():
            folder = self.root / images.format(split=split)
            folder.mkdir(parents=True, exist_ok=True)
            data = {"images": [], "annotations": [], "categories": []}
            data["categories"] = [{"id": i, "name": name} for name, i in IDS.items()]
            for number, objects in enumerate(pictures):
                name = f"{split}{number:03d}.png"
                Image.new("RGB", (8, 6), self.colour(split, number)).save(folder / name)
                data["images"].append({"id": number + 1, "file_name": name})
                for cls, area in objects:
                    data["annotations"].append(
                        {
                            "id": len(data["annotations"]) + 1,
                            "image_id": number + 1,
                            "category_id": IDS[cls],
                            "area": area,
                            "bbox": [0, 0, 1, area],
                            "iscrowd": crowd,
                        }
                    )
            self.annotations(split, suffix).write_text(json.dumps(data))
        return self.root

    def annotations(self, split: str, suffix: str = "") -> Path:
        """The file of one split."""
        return self.root / "annotations" / f"instances_{split}{suffix}.json"

    def edit(self, split: str, change) -> None:
        """Bend the parsed annotations of one split."""
        data = json.loads(self.annotations(split).read_text())
        self.annotations(split).write_text(json.dumps(change(data) or data))

    @staticmethod
    def colour(split: str, number: int) -> tuple[int, int, int]:
        """Colour of the number-th image of a split."""
        return (10 + number * 2, 200 if split == "val" else 20, 90)
