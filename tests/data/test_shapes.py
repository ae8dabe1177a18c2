"""The generator of COCO-format data."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ga_scope.data import make_shapes
from ga_scope.data.shapes import CLASSES


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=250, val=20)


def content(folder, split="train"):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_same_seed_same_bytes(tmp_path):
    for name, seed, processes in (("a", 3, 1), ("b", 3, 2), ("c", 4, 1)):
        make_shapes(tmp_path / name, train=4, val=2, size=96, seed=seed, processes=processes)
    files = {name: sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.*")) for name in "abc"}
    assert files["a"] == files["b"] and len(files["a"]) == 8
    same = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files["a"]]
    other = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "c" / f).read_bytes() for f in files["a"]]
    assert all(same) and not any(other)


def test_splits_differ(shapes):
    first = [(shapes / split / "000000.jpg").read_bytes() for split in ("train", "val")]
    assert first[0] != first[1]


def test_variety(shapes):
    """Every class, 8 px to most of the image, aspect ratios to 1:6, overlaps, crowds, images without objects."""
    data = content(shapes)
    objects = [a for a in data["annotations"] if not a["iscrowd"]]
    counts = Counter(a["category_id"] for a in objects)
    assert sorted(counts) == list(range(1, len(CLASSES) + 1)) and min(counts.values()) > 50
    sides = np.array([math.sqrt(a["bbox"][2] * a["bbox"][3]) for a in objects])
    assert sides.min() < 12 and sides.max() > 0.6 * 192
    # Log-uniform: about as many objects below the geometric middle as above.
    assert 0.35 < (sides < math.sqrt(8 * 0.8 * 192)).mean() < 0.65
    aspect = np.array([a["bbox"][2] / a["bbox"][3] for a in objects])
    assert aspect.max() > 4 and aspect.min() < 1 / 4
    per_image = Counter(a["image_id"] for a in data["annotations"])
    assert sum(a["iscrowd"] for a in data["annotations"]) >= 3
    assert len(per_image) < len(data["images"]) and max(per_image.values()) >= 6
    coco_boxes = {}
    for a in objects:
        coco_boxes.setdefault(a["image_id"], []).append(a["bbox"])
    overlapping = 0
    for boxes in coco_boxes.values():
        for i, (x, y, w, h) in enumerate(boxes):
            overlapping += any(x < X + W and X < x + w and y < Y + H and Y < y + h for X, Y, W, H in boxes[:i])
    assert overlapping > 20


def test_it_is_coco(shapes):
    """pycocotools reads it; boxes enclose the masks; images are there in their sizes."""
    coco = COCO(shapes / "annotations" / "instances_train.json")
    for image in list(coco.imgs.values())[:40]:
        with Image.open(shapes / "train" / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"])
        for annotation in coco.imgToAnns[image["id"]]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x and 0 <= y and w > 0 and h > 0 and x + w <= 192 and y + h <= 192
            mask = coco.annToMask(annotation)
            ys, xs = np.nonzero(mask)
            # Thin tips are lost to one rasteriser or the other.
            slack = 3 + 0.15 * max(w, h)
            assert abs(xs.min() - x) <= slack and abs(ys.min() - y) <= slack
            assert abs(xs.max() + 1 - x - w) <= slack and abs(ys.max() + 1 - y - h) <= slack
            if annotation["category_id"] != CLASSES.index("letter") + 1:  # whose outline has no holes
                assert annotation["area"] == pytest.approx(int(mask.sum()), rel=0.1, abs=w + h)


def test_objects_differ_from_what_they_cover(shapes):
    data = content(shapes)
    for annotation in [a for a in data["annotations"] if a["area"] > 400][:60]:
        image = np.asarray(Image.open(shapes / "train" / f"{annotation['image_id'] - 1:06d}.jpg"), dtype=float)
        assert image.std() > 5


def test_again_is_free_and_other_settings_are_an_error(shapes):
    before = (shapes / "annotations" / "instances_train.json").stat().st_mtime_ns
    make_shapes(shapes, train=250, val=20)
    assert (shapes / "annotations" / "instances_train.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="instances_train.json: expected shapes of .*'images': 7"):
        make_shapes(shapes, train=7, val=20)
