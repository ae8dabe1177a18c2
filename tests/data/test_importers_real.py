"""Importers on photographs as their authors publish them: where the folder GA_SCOPE_REAL holds them."""

import json
import os
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ga_scope.data.importers import ImportOptions, import_dataset

REAL = Path(os.environ.get("GA_SCOPE_REAL", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("GA_SCOPE_REAL") or not REAL.is_dir(), reason="GA_SCOPE_REAL names no folder of real photos"
)

# Folder of the source: format, options, images and boxes of each split, images and boxes read, boxes written, findings.
SOURCES = {
    "bccd": (
        "voc",
        {},
        {"train": (205, 2804), "val": (87, 1137), "test": (72, 945), "trainval": (292, 3941)},
        (364, 4888, 4886),
        {"zero_size_box": 2, "near_duplicate_box": 8},
    ),
    "neu_det": (
        "voc",
        {},
        {"train": (1770, 4123), "val": (30, 63)},
        (1800, 4189, 4186),
        {
            "duplicate_box": 3,
            "class_not_in_file_name": 188,
            "duplicate_image": 1,
            "difficult": 81,
            "other_file_name": 174,
        },
    ),
    "neu_det/split80": (
        "coco",
        {"images": (str(REAL / "neu_det"),)},
        {"train": (1440, 3315), "val": (359, 868)},
        (1799, 4183, 4183),
        {"class_not_in_file_name": 188},
    ),
    "ships": (
        "yolo",
        {},
        {"train": (317, 472), "val": (99, 116), "test": (63, 82)},
        (479, 670, 670),
        {
            "label_without_image": 34,
            "unlabelled_image": 88,
            "polygon": 112,
            "box_leaves_image": 7,
            "duplicate_image": 3,
            "split_folder": 3,
            "unnamed_class": 150,
        },
    ),
    "coco_free": (
        "coco",
        {},
        {"train": (89, 811), "val": (48, 476)},
        (137, 1287, 1287),
        {"image_without_boxes": 3, "grey": 1},
    ),
    "fixtures": (
        "coco",
        {},
        {"pen_exif3": (1, 1), "pen_exif6": (1, 1)},
        (2, 2, 2),
        {"exif_orientation": 2},
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_counts_and_dirt_are_those_of_the_source(name, tmp_path):
    format, options, splits, counts, findings = SOURCES[name]
    report = import_dataset(format, REAL / name, tmp_path / "output", ImportOptions(**options))
    assert {split: (c["images"], c["boxes"]) for split, c in report.splits.items()} == splits
    assert (report.read["images"], report.read["boxes"], report.written["boxes"]) == counts
    assert {finding: len(entries) for finding, entries in report.found.items()} == findings
    for split in splits:
        path = tmp_path / "output" / "annotations" / f"instances_{split}.json"
        assert_perfect_detections_score_one(path)


def test_dirt_by_name(tmp_path):
    entries = import_dataset("voc", REAL / "bccd", tmp_path / "bccd").found
    assert sorted(entries["zero_size_box"]) == [
        "Annotations/BloodImage_00338.xml: object 13",
        "Annotations/BloodImage_00343.xml: object 4",
    ]
    entries = import_dataset("yolo", REAL / "ships", tmp_path / "ships").found
    assert "data.yaml: val: ../valid/images is validate/images" in entries["split_folder"]


def test_boxes_equal_the_published_split(tmp_path):
    """neu_det's xml files against the json of its fixed split."""
    import_dataset("voc", REAL / "neu_det", tmp_path / "output", ImportOptions(splits={"all": "."}))
    ours = boxes(tmp_path / "output" / "annotations" / "instances_all.json")
    theirs = [boxes(REAL / "neu_det" / "split80" / f"{split}.json") for split in ("train", "val")]
    published = theirs[0] | theirs[1]
    assert {key: ours[key] for key in published} == published
    assert ours.keys() - published.keys() == {"patches_105.jpg"}  # the same picture as patches_101


def boxes(path):
    content = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    found = {name: [] for name in images.values()}
    for annotation in content["annotations"]:
        found[images[annotation["image_id"]]].append((names[annotation["category_id"]], *annotation["bbox"]))
    return {name: sorted(of_image) for name, of_image in found.items()}


def assert_perfect_detections_score_one(path):
    truth = COCO(str(path))
    entries = [annotation for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    keys = ("image_id", "category_id", "bbox")
    found = truth.loadRes([{key: entry[key] for key in keys} | {"score": 1.0} for entry in entries])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[[0, 8]] == pytest.approx(1, abs=1e-12)


def test_a_png_named_jpg_with_an_odd_name_and_fractional_pixels(tmp_path):
    report = import_dataset("voc", REAL / "fixtures", tmp_path / "output")
    assert {finding: len(entries) for finding, entries in report.found.items()} == {
        "fractional_coordinates": 1,
        "other_format": 1,
        "alpha": 1,
        "odd_name": 1,
        "unlabelled_image": 2,  # the turned photos, which are labelled in COCO's format
    }
    (box,) = boxes(tmp_path / "output" / "annotations" / "instances_train.json")["dayride_type1_001.mp4#t=1082.jpg"]
    assert box == ("license-plate", 600.9066, 332.9508, 81.6289, 21.6393)
    assert_perfect_detections_score_one(tmp_path / "output" / "annotations" / "instances_train.json")
