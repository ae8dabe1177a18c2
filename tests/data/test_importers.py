"""Importers: small sources with each piece of dirt once, and what becomes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageOps

from ga_scope.data import load_coco_json
from ga_scope.data.importers import FINDINGS, ImportOptions, import_dataset
from ga_scope.data.importers.pictures import Picture
from ga_scope.errors import DatasetError

ROOT = Path(__file__).parents[2]


# ---- making sources -------------------------------------------------------------------------------------------------


def picture(path, size=(100, 80), seed=0, orientation=None, mode="RGB", format=None):
    """A photograph of noise; every seed another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, format=format, exif=exif)
    return path


def voc_xml(path, objects, size=(100, 80), filename=None, database="Unknown", extra=""):
    """``objects``: (name, xmin, ymin, xmax, ymax[, difficult]), or xml text."""
    parts = []
    for item in objects:
        if not isinstance(item, str):
            name, *corners, difficult = (*item, 0)[:6]
            tags = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
            item = f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{tags}</bndbox></object>"
        parts.append(item)
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{filename or path.stem + '.jpg'}</filename>"
        f"<source><database>{database}</database></source>{size}{extra}{''.join(parts)}</annotation>"
    )


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def coco_json(path, images, annotations, categories=({"id": 1, "name": "a"}, {"id": 2, "name": "b"})):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def bring(tmp_path, source):
    """Imports ``source``; returns the report."""

    def run(format, where=None, **options):
        return import_dataset(format, where or source, tmp_path / "output", ImportOptions(**options))

    return run


@pytest.fixture
def written(tmp_path):
    """What the annotation file of a split holds, {file name: [(class, *bbox)]}; checks that it is consistent."""

    def read(split="train"):
        path = tmp_path / "output" / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        dataset = load_coco_json(path, tmp_path / "output" / "images")
        assert list(dataset.classes) == [c["name"] for c in content["categories"]]
        assert dataset.annotations.usable.sum() == len(content["annotations"]), "the project drops a box"
        ids = [a["id"] for a in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))  # pycocotools takes 0 for no match
        found = {}
        names = {c["id"]: c["name"] for c in content["categories"]}
        for image in content["images"]:
            with Image.open(tmp_path / "output" / "images" / image["file_name"]) as file:
                assert ImageOps.exif_transpose(file).size == (image["width"], image["height"])
            boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            found[image["file_name"]] = [(names[a["category_id"]], *a["bbox"]) for a in boxes]
        return found

    return read


def found(report):
    return {name: len(entries) for name, entries in report.found.items()}


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_voc_with_its_official_splits(source, bring, written):
    for i, name in enumerate(("one", "two", "three four", "left out")):
        picture(source / "JPEGImages" / f"{name}.jpg", seed=i)
        voc_xml(source / "Annotations" / f"{name}.xml", [("dog", 10, 20, 30, 50), ("cat", 1, 1, 99, 79)][: i + 1])
    lists = source / "ImageSets" / "Main"
    text(lists / "train.txt", "one")
    text(lists / "val.txt", "two")
    text(lists / "trainval.txt", "one", "two", "")
    text(lists / "test.txt", "three four", "nothing")
    text(lists / "dog_train.txt", "one  1", "two -1")
    report = bring("voc")
    assert report.splits == {
        "test": {"images": 1, "boxes": 2},
        "train": {"images": 1, "boxes": 1},
        "trainval": {"images": 2, "boxes": 3},
        "val": {"images": 1, "boxes": 2},
    }
    assert found(report) == {"image_in_no_split": 1, "label_without_image": 1}
    assert report.classes == {"cat": 2, "dog": 3}  # in the order of the alphabet
    assert report.written == {"images": 3, "boxes": 5}  # trainval's are counted once
    assert written("test") == {"three four.jpg": [("dog", 10, 20, 20, 30), ("cat", 1, 1, 98, 78)]}
    assert written("trainval") == written("train") | written("val")


def test_voc_dirt(source, bring, written):
    for i, name in enumerate(("clean", "boxes", "odd #=1", "nothing", "size", "zero", "mismatch", "gone")):
        picture(source / "images" / f"{name}.jpg", seed=i)
    labels = source / "labels"
    voc_xml(labels / "clean.xml", [("a", 0.5, 2, 30, 40)])
    voc_xml(
        labels / "boxes.xml",
        [
            ("a", 10, 10, 10, 30),  # zero width
            ("a", 30, 30, 20, 20),  # corners swapped
            ("a", 30, 30, 20, 20),  # the same again
            ("a", 90, 70, 120, 90),  # leaves the image
            ("a", 200, 10, 220, 30),  # outside
            ("a", "nan", 10, 20, 30),
            ("a", "x", 10, 20, 30),
            ("b", 50, 50, 70, 70, 1),  # difficult
            ("b", 50, 50, 70, 69),  # nearly the same
            "<object><name>a</name></object>",
            "<object><name/><bndbox><xmin>1</xmin></bndbox></object>",
            # A part's box is not the object's.
            "<object><name>c</name><part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax>"
            "<ymax>1</ymax></bndbox></part><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>",
        ],
    )
    voc_xml(labels / "odd #=1.xml", [("a", 1, 2, 3, 4)], filename="other.jpg")
    voc_xml(labels / "nothing.xml", [])
    voc_xml(labels / "size.xml", [("a", 20, 20, 40, 40)], size=(200, 160))  # of twice the size
    voc_xml(labels / "zero.xml", [("a", 20, 20, 40, 40)], size=(0, 0))  # not said
    voc_xml(labels / "mismatch.xml", [("a", 20, 20, 40, 40)], size=(80, 100))
    voc_xml(labels / "no image.xml", [("a", 1, 1, 2, 2)])
    (labels / "gone.xml").write_text("<annotation><object>")
    (labels / "cvat.xml").write_text("<annotations><image/></annotations>")
    picture(source / "images" / "no label.jpg", seed=9)
    report = bring("voc")
    assert found(report) == {
        "fractional_coordinates": 1,
        "zero_size_box": 1,
        "swapped_corners": 2,
        "duplicate_box": 1,
        "box_leaves_image": 1,
        "box_outside": 1,
        "not_finite_box": 1,
        "malformed_entry": 3,
        "difficult": 1,
        "near_duplicate_box": 1,
        "other_file_name": 1,
        "odd_name": 1,
        "image_without_boxes": 1,
        "scaled_frame": 1,
        "other_size": 1,
        "label_without_image": 1,
        "unreadable_label": 2,
        "unlabelled_image": 1,
    }
    assert written() == {
        "clean.jpg": [("a", 0.5, 2, 29.5, 38)],
        "boxes.jpg": [
            ("a", 20, 20, 10, 10),
            ("a", 90, 70, 10, 10),
            ("b", 50, 50, 20, 20),
            ("b", 50, 50, 20, 19),
            ("c", 1, 2, 2, 2),
        ],
        "odd #=1.jpg": [("a", 1, 2, 2, 2)],
        "nothing.jpg": [],
        "size.jpg": [("a", 10, 10, 10, 10)],
        "zero.jpg": [("a", 20, 20, 20, 20)],
        "mismatch.jpg": [("a", 20, 20, 20, 20)],
    }
    assert report.read["boxes"] == 17 and report.written["boxes"] == 10
    text = report.as_text()
    for name, entries in report.found.items():
        assert f"{len(entries)} x {FINDINGS[name][1]}" in text
    assert "boxes.xml: object 7: expected a number as <xmin>, got 'x'" in text


@pytest.mark.parametrize("pixels, database, offset", [
    ("auto", "The VOC2007 Database", 1), ("auto", "LabelImg", 0), ("one-based", "x", 1),
    ("edges", "The VOC2012 Database", 0),
])  # fmt: skip
def test_voc_pixels_from_one(pixels, database, offset, source, bring, written):
    picture(source / "1.jpg")
    voc_xml(source / "1.xml", [("a", 1, 1, 100, 80)], database=database)
    report = bring("voc", pixels=pixels)
    assert written() == {"1.jpg": [("a", 1 - offset, 1 - offset, 99 + offset, 79 + offset)]}
    assert report.count("one_based") == offset


def test_voc_in_folders_of_splits(source, bring, written):
    """Equal names in two splits; an image is never given to another split's label."""
    for i, split in enumerate(("train", "valid", "test")):
        for name in ("1", "2"):
            if (split, name) != ("valid", "2"):
                picture(source / split / "images" / f"{name}.jpg", seed=2 * i + int(name))
            voc_xml(source / split / "annotations" / f"{name}.xml", [("a", 1 + i, 1, 9, 9)])
    report = bring("voc")
    assert {name: counts["images"] for name, counts in report.splits.items()} == {"test": 2, "train": 2, "val": 1}
    assert found(report) == {"label_without_image": 1}
    assert written("val") == {"valid/images/1.jpg": [("a", 2, 1, 7, 8)]}


def test_voc_with_splits_and_classes_of_ones_own(source, bring, written):
    for i, folder in enumerate(("ANNOTATIONS", "More")):
        picture(source / "IMAGES" / f"{i}.jpg", seed=i)
        voc_xml(source / folder / f"{i}.xml", [("b", 1, 1, 9, 9), ("a", 1, 1, 9, 9), ("c", 1, 1, 9, 9)])
    report = bring("voc", splits={"all": ".", "more": "More"}, classes=("b", "d", "a"))
    assert {name: counts["images"] for name, counts in report.splits.items()} == {"all": 2, "more": 1}
    assert report.classes == {"b": 2, "d": 0, "a": 2} and report.count("unlisted_class") == 2


def test_voc_devkit_takes_the_photograph_not_its_mask(source, bring, written):
    picture(source / "JPEGImages" / "1.jpg")
    picture(source / "SegmentationClass" / "1.png", seed=1)
    voc_xml(source / "Annotations" / "1.xml", [("a", 1, 1, 9, 9)])
    report = bring("voc")
    assert written() == {"1.jpg": [("a", 1, 1, 8, 8)]} and found(report) == {}


@pytest.mark.parametrize("difficult", ["keep", "ignore", "drop"])
def test_voc_difficult(difficult, source, bring, tmp_path):
    picture(source / "1.jpg")
    voc_xml(source / "1.xml", [("a", 1, 1, 9, 9, 1), ("a", 11, 11, 19, 19)])
    report = bring("voc", difficult=difficult)
    content = json.loads((tmp_path / "output" / "annotations" / "instances_train.json").read_text())
    marks = [annotation.get("ignore") for annotation in content["annotations"]]
    assert marks == {"keep": [None, None], "ignore": [1, None], "drop": [None]}[difficult]
    assert found(report) == {"difficult_dropped" if difficult == "drop" else "difficult": 1}


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_points_are_pixels_of_the_transposed_image(orientation, tmp_path):
    """A white pixel is where PIL's exif_transpose puts it."""
    stored = (7, 5)
    x, y = 5, 1
    image = Image.new("L", stored)
    image.putpixel((x, y), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "1.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "1.png")))
    facts = Picture(stored, orientation, "L", "PNG", "")
    assert upright.shape == facts.size[::-1]
    (row,), (column,) = upright.nonzero()
    assert facts.upright(x + 0.5, y + 0.5) == (column + 0.5, row + 0.5)


def test_exif_turned_images(source, bring, written):
    """Boxes of the upright image stay; those of the stored one, as its label's size says, are turned with it."""
    picture(source / "upright.jpg", (100, 80), 0, orientation=6)
    picture(source / "stored.jpg", (100, 80), 1, orientation=6)
    picture(source / "half.jpg", (100, 80), 2, orientation=8)
    picture(source / "about.jpg", (100, 80), 3, orientation=3)
    voc_xml(source / "upright.xml", [("a", 10, 20, 30, 60)], size=(80, 100))
    voc_xml(source / "stored.xml", [("a", 10, 20, 30, 60)], size=(100, 80))
    voc_xml(source / "half.xml", [("a", 5, 10, 15, 30)], size=(50, 40))
    voc_xml(source / "about.xml", [("a", 10, 20, 30, 60)], size=(100, 80))
    report = bring("voc")
    assert written() == {
        "upright.jpg": [("a", 10, 20, 20, 40)],
        "stored.jpg": [("a", 20, 10, 40, 20)],  # (x, y) to (80 - y, x)
        "half.jpg": [("a", 20, 70, 40, 20)],  # twice, then (x, y) to (y, 100 - x)
        "about.jpg": [("a", 10, 20, 20, 40)],
    }
    assert found(report) == {"exif_orientation": 4, "turned_frame": 1, "scaled_frame": 1}


def test_images_of_all_kinds(source, bring, written):
    picture(source / "alpha.jpg", seed=0, mode="RGBA", format="PNG")
    picture(source / "grey.png", seed=1, mode="L")
    Image.fromarray(np.full((80, 100), 40_000, np.uint16)).save(source / "deep.png")
    picture(source / "truncated.jpg", seed=3)
    (source / "truncated.jpg").write_bytes((source / "truncated.jpg").read_bytes()[:-500])
    (source / "no image.jpg").write_text("this is no image")
    picture(source / "copy 1.jpg", seed=4)
    picture(source / "copy 2.jpg", seed=4)
    for path in sorted(source.iterdir()):
        voc_xml(path.with_suffix(".xml"), [("a", 1, 1, 9, 9)], filename=path.name)
    report = bring("voc")
    assert found(report) == {
        "alpha": 1, "other_format": 1, "grey": 1, "deep_image": 1, "unreadable_image": 2, "duplicate_image": 1,
    }  # fmt: skip
    assert set(written()) == {"alpha.jpg", "grey.png", "deep.png", "copy 1.jpg", "copy 2.jpg"}


def test_classes_in_file_names(source, bring):
    for i, name in enumerate(("cat_1", "cat_2", "wild cat_1")):
        picture(source / f"{name}.jpg", seed=i)
        voc_xml(source / f"{name}.xml", [("cat", 1, 1, 9, 9), ("wild cat", 20, 20, 30, 30)])
    assert bring("voc").count("class_not_in_file_name") == 3


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo_images(source, *names):
    for i, name in enumerate(names):
        picture(source / name, seed=i)


def test_yolo_dirt(source, bring, written):
    yolo_images(source, *(f"train/images/{n}.jpg" for n in "abcd"), "validate/images/a.jpg", "test/images/t.jpg")
    labels = source / "train" / "labels"
    text(
        labels / "a.txt",
        "1 0.5 0.5 0.2 0.5",
        "0 0.1 0.25 0.3 0.25 0.3 0.75",  # a polygon
        "0.0 0.95 0.5 0.2 0.5 0.87",  # leaves the image; a sixth number
        "2 0.5 0.5 0.25 0.25",  # no name
        "",
        "0 0.5 0.5 0 0.1",
        "x 0.5 0.5 0.1 0.1",
        "-1 0.5 0.5 0.1 0.1",
        "0 0.5 0.5 0.1",
        "0 nan 0.5 0.1 0.1",
        "0 50 40 20 20",  # pixels
        "0 1.5 0.5 0.1 0.1",  # outside
        "1 0.5 0.5 0.2 0.5",  # again
        "0 0,5 0,5 0,1 0,1",
    )
    text(labels / "b.txt")  # an image of nothing
    text(labels / "c.txt", "0 2 3 4 5")  # nothing is left of it
    text(labels / "no image.txt", "0 0.5 0.5 0.1 0.1")
    text(labels / "classes.txt", "x")
    text(source / "validate" / "labels" / "a.txt", "0 0.5 0.5 1.0000001 1")
    text(source / "test" / "labels" / "t.txt", "0 0.5 0.5 1 1")
    text(source / "data.yaml", "train: ../train/images", "val: ../valid/images", "nc: 3", "names: ['no', '007']")
    report = bring("yolo")
    assert found(report) == {
        "polygon": 1,
        "box_leaves_image": 1,
        "extra_column": 1,
        "unnamed_class": 1,
        "zero_size_box": 1,
        "malformed_entry": 4,
        "not_finite_box": 1,
        "not_normalized_box": 2,
        "box_outside": 1,
        "duplicate_box": 1,
        "image_without_boxes": 2,
        "unlabelled_image": 1,
        "label_without_image": 1,
        "class_count": 1,
        "split_folder": 2,
        "unlisted_split": 1,
    }
    assert written("train") == {
        "train/images/a.jpg": [
            ("007", 40, 20, 20, 40), ("no", 10, 20, 20, 40), ("no", 85, 20, 15, 40), ("class_2", 37.5, 30, 25, 20),
        ],
        "train/images/b.jpg": [],
        "train/images/c.jpg": [],
    }  # fmt: skip
    assert written("val") == {"validate/images/a.jpg": [("no", 0, 0, 100, 80)]}
    assert list(report.classes) == ["no", "007", "class_2"]
    assert report.read["boxes"] == 15 and report.written["boxes"] == 5


@pytest.mark.parametrize("unlabelled, images", [("drop", 1), ("background", 2)])
def test_yolo_images_without_labels(unlabelled, images, source, bring):
    yolo_images(source, "images/train/1.jpg", "images/train/2.jpg")
    text(source / "labels" / "train" / "1.txt", "0 0.5 0.5 0.1 0.1")
    text(source / "data.yaml", "train: images/train", "names: {0: a}", "test:")
    report = bring("yolo", unlabelled=unlabelled)
    assert report.splits == {"train": {"images": images, "boxes": 1}}
    expected = {"unlabelled_image": 1} if unlabelled == "drop" else {"background_image": 1, "image_without_boxes": 1}
    assert found(report) == expected


@pytest.mark.parametrize("lines", [
    ["path: /content/datasets/birds", "train: images/train", "val: images/val"],
    ["path: ../datasets/birds", "train: images/train", "val: images/val"],
    ["train: /home/someone/birds/images/train", "val: C:\\birds\\images\\val"],
    ["train: [images/train]", "val: ./images/val/"],
    ["train: train.txt", "val: /elsewhere/val.txt"],
    ["train: ../images/training", "valid: images/validation"],
])  # fmt: skip
def test_yolo_paths_that_travelled(lines, source, bring, written):
    yolo_images(source, "images/train/deep/er/1.jpg", "images/train/2.jpg", "images/val/3.jpg")
    for name in ("train/deep/er/1", "train/2", "val/3"):
        text(source / "labels" / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    text(source / "train.txt", "./images/train/deep/er/1.jpg", "/gone/birds/images/train/2.jpg")
    text(source / "val.txt", "images/val/3.jpg", "images/val/4.jpg")
    text(source / "data.yaml", *lines, "names: [bird]")
    report = bring("yolo")
    assert written("train").keys() == {"train/deep/er/1.jpg", "train/2.jpg"}
    assert written("val").keys() == {"val/3.jpg"}
    assert report.count("unreadable_image") == (1 if "train.txt" in lines[0] else 0)
    assert report.count("missing_split") == 0


def test_yolo_does_not_take_a_neighbours_folder(source, bring, written, tmp_path):
    """../train of Roboflow's data.yaml means the data set's own folder, though another's lies where it points."""
    yolo_images(tmp_path, "train/images/wrong.jpg", "source/train/images/1.jpg")
    text(source / "train" / "labels" / "1.txt", "0 0.5 0.5 0.5 0.5")
    text(source / "data.yaml", "train: ../train/images", "val: ../valid/images", "names: [a]")
    report = bring("yolo")
    assert written().keys() == {"1.jpg"} and report.count("missing_split") == 1


def test_yolo_images_outside_of_the_descriptions_folder(source, bring, written, tmp_path):
    yolo_images(tmp_path, "datasets/birds/images/train/1.jpg")
    text(tmp_path / "datasets" / "birds" / "labels" / "train" / "1.txt", "0 0.5 0.5 0.5 0.5")
    text(source / "birds.yaml", "path: ../datasets/birds", "train: images/train", "names: [a]")
    bring("yolo", source / "birds.yaml")
    assert written() == {"1.jpg": [("a", 25, 20, 50, 40)]}


def test_yolo_of_darknet_and_cvat(source, bring, written):
    yolo_images(source, "obj_train_data/1.jpg", "obj_train_data/2.jpg", "obj_valid_data/3.jpg")
    for name in ("obj_train_data/1", "obj_train_data/2", "obj_valid_data/3"):
        text(source / f"{name}.txt", "1 0.5 0.5 0.5 0.5")
    text(
        source / "obj.data", "classes = 2", "train = data/train.txt", "valid = data/valid.txt", "names = data/obj.names"
    )
    text(source / "obj.names", "a", "b")
    text(source / "train.txt", "data/obj_train_data/1.jpg", "data/obj_train_data/2.jpg")
    text(source / "valid.txt", "data/obj_valid_data/3.jpg")
    report = bring("yolo")
    assert {name: counts["images"] for name, counts in report.splits.items()} == {"train": 2, "val": 1}
    assert written("val") == {"obj_valid_data/3.jpg": [("b", 25, 20, 50, 40)]} and list(report.classes) == ["a", "b"]


def test_yolo_without_a_description(source, bring, written):
    yolo_images(source, "1.jpg", "2.jpg")
    text(source / "1.txt", "3 0.5 0.5 0.5 0.5")
    text(source / "2.txt", "0 0.5 0.5 0.5 0.5")
    text(source / "classes.txt", "a", "b", "c", "d")
    assert bring("yolo").splits == {"train": {"images": 2, "boxes": 2}}
    assert written()["1.jpg"] == [("d", 25, 20, 50, 40)]


def test_yolo_keypoints_and_classes_of_ones_own(source, bring, written):
    yolo_images(source, "images/1.jpg")
    text(source / "labels" / "1.txt", "1 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 1", "2 0.2 0.2 0.1 0.1 0.1 0.2 2 0.3 0.4 1")
    text(source / "data.yaml", "train: images", "kpt_shape: [2, 3]", "names: [a, b, c]")
    report = bring("yolo", classes=("x", "y", "x"))
    assert written() == {"1.jpg": [("y", 25, 20, 50, 40), ("x", 15, 12, 10, 8)]}
    assert list(report.classes) == ["x", "y"] and found(report) == {"merged_class": 1}


# ---- COCO -----------------------------------------------------------------------------------------------------------


def image_entry(number, name, **more):
    return {"id": number, "file_name": name, "width": 100, "height": 80} | more


def entry(number, image, bbox, category=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def test_coco_dirt(source, bring, written, tmp_path):
    for i in range(1, 6):
        picture(source / "train2017" / f"{i}.jpg", seed=i)
    triangle = [0, 0, 10, 0, 0, 10]
    coco_json(
        source / "annotations" / "instances_train.json",
        [image_entry(i, f"{i}.jpg", license=4) for i in range(1, 5)]
        + [image_entry(1, "1.jpg"), image_entry(9, "gone.jpg"), image_entry(7, "/data/5.jpg", width=200, height=160)],
        [
            entry(0, 1, [1, 2, 30, 40], area=900, segmentation=triangle, iscrowd=None, attributes={"occluded": True}),
            entry(0, 1, [5, 6, 7, 8], 2, iscrowd=1, segmentation={"counts": "x", "size": [80, 100]}),
            entry(2, 2, [1, 1, 0, 5]),
            entry(3, 2, [1, 1, 5]),
            entry(4, 2, "1 2 3 4"),
            entry(5, 2, [1, 1, float("nan"), 5]),
            entry(6, 2, [1, 1, 5, 5], 3),
            entry(7, 77, [1, 1, 5, 5]),
            entry(8, 9, [1, 1, 5, 5]),
            entry(9, 3, [90, 70, 20, 20], area=-1),
            entry(10, 3, [10**400, 1, 1, 1]),
            entry(11, 7, [20, 20, 40, 40], segmentation=[[20, 20, 60, 20, 60, 60]], area=5),
        ],
    )
    report = bring("coco")
    assert found(report) == {
        "repeated_image_entry": 1,
        "label_without_image": 1,
        "zero_size_box": 1,
        "malformed_entry": 3,
        "not_finite_box": 1,
        "unknown_category_id": 1,
        "unknown_image_id": 1,
        "box_leaves_image": 1,
        "wrong_area": 1,
        "emptied_image": 1,
        "image_without_boxes": 1,
        "scaled_frame": 1,
    }
    assert written() == {
        "1.jpg": [("a", 1, 2, 30, 40), ("b", 5, 6, 7, 8)],
        "2.jpg": [],
        "3.jpg": [("a", 90, 70, 10, 10)],
        "4.jpg": [],
        "5.jpg": [("a", 10, 10, 20, 20)],
    }
    content = json.loads((tmp_path / "output" / "annotations" / "instances_train.json").read_text())
    first, crowd, clipped, scaled = content["annotations"]
    assert first["area"] == 900 and first["segmentation"] == [triangle] and first["attributes"] == {"occluded": True}
    assert (first["iscrowd"], crowd["iscrowd"]) == (0, 1) and crowd["segmentation"]["counts"] == "x"
    assert clipped["area"] == 100
    assert scaled["segmentation"] == [[10, 10, 30, 10, 30, 30]] and scaled["area"] == 400
    assert content["images"][0]["license"] == 4 and content["images"][-1]["id"] == 7


def test_coco_classes_are_names_whatever_their_numbers(source, bring, written):
    for i, (split, numbers) in enumerate((("train", (1, 2)), ("valid", (2, 1)))):
        picture(source / split / "1.jpg", seed=i)
        categories = [{"id": n, "name": name} for n, name in zip(numbers, "ab")]
        coco_json(
            source / split / "_annotations.coco.json",
            [image_entry(1, "1.jpg")],
            [entry(1, 1, [1, 2, 3, 4])],
            categories,
        )
    report = bring("coco")
    assert report.splits.keys() == {"train", "val"} and found(report) == {"renumbered_categories": 1}
    assert written("train") == {"train/1.jpg": [("a", 1, 2, 3, 4)]}
    assert written("val") == {"valid/1.jpg": [("b", 1, 2, 3, 4)]}


def test_coco_images_of_equal_names_in_folders(source, bring, written):
    picture(source / "images" / "cam_a" / "1.jpg", seed=0)
    picture(source / "images" / "cam_b" / "1.jpg", seed=1)
    entries = [image_entry(i, f"cam_{c}/1.jpg") for i, c in enumerate("abc")]  # cam_c's is gone, and is no other's
    coco_json(source / "labels.json", entries, [entry(1, i, [i, 2, 3, 4]) for i in range(3)])
    report = bring("coco", source / "labels.json")
    assert written() == {"cam_a/1.jpg": [("a", 0, 2, 3, 4)], "cam_b/1.jpg": [("a", 1, 2, 3, 4)]}
    assert found(report) == {"label_without_image": 1}


def test_coco_turned_masks_and_ids_that_are_strings(source, bring, written, tmp_path):
    picture(source / "1.jpg", orientation=6)
    coco_json(
        source / "all.json",
        [image_entry("0001", "1.jpg")],
        [
            entry("x", "0001", [10, 20, 20, 40], "k", segmentation=[[10, 20, 30, 20, 30, 60]]),
            entry("y", "0001", [0, 0, 9, 9], "k", segmentation={"counts": [], "size": [80, 100]}),
        ],
        [{"id": "k", "name": "a"}],
    )
    report = bring("coco", splits={"train": "all.json"})
    assert written() == {"1.jpg": [("a", 20, 10, 40, 20), ("a", 71, 0, 9, 9)]}
    assert found(report) == {"exif_orientation": 1, "turned_frame": 1, "removed_mask": 1, "renumbered_categories": 1}
    content = json.loads((tmp_path / "output" / "annotations" / "instances_train.json").read_text())
    assert content["annotations"][0]["segmentation"] == [[60, 10, 60, 30, 20, 30]]
    assert content["images"][0]["id"] == 1


# ---- splits, output, commands ---------------------------------------------------------------------------------------


def test_hold_out_is_exact_and_keeps_equal_images_together(source, bring, written):
    for i in range(20):
        picture(source / f"{i}.jpg", seed=i % 10)
        voc_xml(source / f"{i}.xml", [("a", 1, 1, 9, 9)])
    report = bring("voc", hold_out=("val", 0.3))
    assert {name: counts["images"] for name, counts in report.splits.items()} == {"train": 14, "val": 6}
    halves = [{int(name.removesuffix(".jpg")) % 10 for name in written(split)} for split in ("train", "val")]
    assert halves[0].isdisjoint(halves[1]) and len(halves[1]) == 3
    assert report.count("duplicate_image") == 10
    again = written("val")
    bring("voc", hold_out=("val", 0.3))
    assert written("val") == again


def test_images_in_two_splits(source, bring):
    lists = source / "ImageSets" / "Main"
    for i in range(3):
        picture(source / "JPEGImages" / f"{i}.jpg", seed=i)
        voc_xml(source / "Annotations" / f"{i}.xml", [("a", 1, 1, 9, 9)])
    text(lists / "train.txt", "0", "1")
    text(lists / "val.txt", "1", "2")
    text(lists / "trainval.txt", "0", "1", "2")
    assert found(bring("voc")) == {"image_in_two_splits": 1}


@pytest.fixture
def small(source):
    picture(source / "train" / "1.jpg")
    picture(source / "val" / "2.jpg", seed=1)
    voc_xml(source / "train" / "1.xml", [("a", 1, 1, 9, 9)])
    voc_xml(source / "val" / "2.xml", [("a", 1, 1, 9, 9)])
    return source


def state(folder):
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def test_again_into_the_same_folder(small, bring, tmp_path):
    bring("voc")
    first = state(tmp_path / "output")
    bring("voc")
    assert state(tmp_path / "output") == first
    bring("voc", splits={"all": "."})  # other splits: those of before are gone
    annotations = tmp_path / "output" / "annotations"
    assert [path.name for path in annotations.iterdir()] == ["instances_all.json"]
    bring("voc", copy=True)
    image = tmp_path / "output" / "images" / "train" / "1.jpg"
    assert not image.is_symlink() and image.read_bytes() == (small / "train" / "1.jpg").read_bytes()
    assert not list((tmp_path / "output").rglob("*.partial"))


def test_after_an_interruption_it_can_be_done_again(small, bring, tmp_path, monkeypatch):
    bring("voc")
    whole = state(tmp_path / "output")
    from ga_scope.data.importers import write

    for stop in range(4):  # before each of the files that are replaced
        folder = tmp_path / "output"
        subprocess.run(["rm", "-r", str(folder)], check=True)
        calls = []

        def replaced(path, content, stop=stop, calls=calls, replace=write.replace_text):
            calls.append(path)
            if len(calls) > stop + 1:
                raise KeyboardInterrupt
            replace(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(write, "replace_text", replaced)
            with pytest.raises(KeyboardInterrupt):
                bring("voc")
        bring("voc")
        assert state(folder) == whole


def test_two_sources_are_not_mixed(small, bring, tmp_path):
    bring("voc")
    before = state(tmp_path / "output")
    other = tmp_path / "other"
    picture(other / "1.jpg")
    voc_xml(other / "1.xml", [("b", 1, 1, 9, 9)])
    with pytest.raises(DatasetError, match=r"output: expected an import of .*/other \(voc\), found one of .*/source"):
        bring("voc", other)
    assert state(tmp_path / "output") == before
    for output, message in (
        (other, "expected an empty folder or an earlier import"),
        (small, "another folder than the"),
    ):
        with pytest.raises(DatasetError, match=message):
            import_dataset("voc", small, output)
    with pytest.raises(DatasetError, match="expected a folder, found a file"):
        import_dataset("voc", small, other / "1.xml")


def test_an_output_inside_the_source_is_not_imported(small):
    first = import_dataset("voc", small, small / "imported")
    assert import_dataset("voc", small, small / "imported").splits == first.splits == {
        "train": {"images": 1, "boxes": 1}, "val": {"images": 1, "boxes": 1},
    }  # fmt: skip


def broken_sources():
    """(format, what makes the source, the one line)."""

    def one_image(source):
        picture(source / "1.jpg")

    def with_yaml(*lines):
        def make(source):
            one_image(source)
            text(source / "data.yaml", *lines)
            text(source / "1.txt", "0 0.5 0.5 0.5 0.5")

        return make

    def with_json(content):
        def make(source):
            one_image(source)
            text(source / "all.json", content)

        return make

    def broken_xml(source):
        one_image(source)
        text(source / "1.xml", "<annotation>")

    def two_devkits(source):
        for year in ("VOC2007", "VOC2012"):
            text(source / year / "ImageSets" / "Main" / "train.txt", "1")
            voc_xml(source / year / "Annotations" / "1.xml", [])

    def words(source):
        one_image(source)
        text(source / "1.txt", "cat on the mat")

    def no_images(source):
        text(source / "labels" / "1.txt", "0 1 1 1 1")

    def only_broken_images(source):
        text(source / "1.jpg", "no image")
        voc_xml(source / "1.xml", [("a", 1, 1, 2, 2)])

    def twice(source):
        with_json('{"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}], "annotations": [], '
                  '"categories": []}')(source)  # fmt: skip

    return [
        ("voc", lambda source: None, "source: no such folder"),
        ("voc", one_image, "expected Pascal VOC's xml files, found none"),
        ("voc", broken_xml, r"no xml file could be read together with its image, for example 1\.xml: no element found"),
        ("voc", two_devkits, "expected one data set, found 2: VOC2007, VOC2012"),
        ("voc", only_broken_images, r"found none that can be read, for example 1\.jpg: cannot identify image file"),
        ("yolo", lambda source: source.mkdir(), "expected images with YOLO labels, found none"),
        ("yolo", no_images, "expected images with YOLO labels, found none, for example no image at all"),
        ("yolo", one_image, r"expected images with YOLO labels, found none, for example 1\.jpg"),
        ("yolo", words, r"no line of any label can be read: 1\.txt:1: expected numbers, got 'cat on the mat'"),
        ("yolo", with_yaml("names: [a", "train: x"), r"data\.yaml: not a yaml file: while parsing"),
        ("yolo", with_yaml("- a"), r"data\.yaml: expected a mapping with names, train and val, got \['a'\]"),
        ("yolo", with_yaml(), r"data\.yaml: expected a mapping with names"),
        ("yolo", with_yaml("names: a", "train: ."), r"data\.yaml: names: expected a list of names or a mapping"),
        ("yolo", with_yaml("names: {x: a}", "train: ."), r"names: expected an index and a name, got 'x': 'a'"),
        ("yolo", with_yaml("names: [[a]]", "train: ."), r"names: expected an index and a name"),
        ("yolo", with_yaml("names: [a]", "train: {a: b}"), r"data\.yaml: train: expected a path, got {'a': 'b'}"),
        ("yolo", with_yaml("names: [a]", "train: pics", "val: more"),
         "found none: data.yaml: train: pics; data.yaml: val: more"),
        ("yolo", with_yaml("names: [a]", "train: .", "kpt_shape: 3"),
         r"kpt_shape: expected \[points, 2 or 3\], got '3'"),
        ("coco", one_image, r"expected COCO annotation files \(json\), found none"),
        ("coco", with_json("{"), r"all\.json: not a JSON file"),
        ("coco", with_json('{"images": []}'), r"all\.json: expected COCO annotations with a list 'annotations'"),
        ("coco", with_json('{"images": [1], "annotations": [], "categories": []}'), "images: expected objects, got 1"),
        ("coco", with_json('{"images": [{"id": 1}], "annotations": [], "categories": []}'),
         "expected an id and a file_name"),
        ("coco", with_json('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [], "categories": []}'),
         r"found none, for example all\.json: image 1: x\.jpg"),
        ("coco", twice, r"images: id 1 is both '1\.jpg' and '2\.jpg'"),
    ]  # fmt: skip


@pytest.mark.parametrize("format, make, message", broken_sources())
def test_broken_sources_end_in_one_line(format, make, message, source, bring, tmp_path):
    make(source)
    with pytest.raises(DatasetError, match=message) as error:
        bring(format)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


def spoil(content: bytes, random) -> bytes:
    """One accident to a text file."""
    i = random.randrange(len(content) + 1)
    j = min(len(content), i + random.randrange(12))
    junk = random.choice(
        [b"", b"\xff\xfe", b"\0", b"-1", b"1e999", b"nan", b"[", b"}", b"<a>", b'"', b"\n", b": ", b"null"]
    )
    return random.choice([content[:i] + junk + content[j:], content[:i], content[i:], junk * 3 + content])


@pytest.mark.parametrize("format", ["voc", "yolo", "coco"])
def test_whatever_happens_to_a_source_is_one_line_or_a_report(format, source, tmp_path):
    """Random damage to labels and descriptions: an import ends with a report, or a DatasetError of one line."""
    random = Random(5)
    picture(source / "images" / "train" / "1.jpg")
    picture(source / "images" / "val" / "2.jpg", seed=1)
    if format == "voc":
        for path in ("train/1", "val/2"):
            voc_xml(source / "labels" / f"{path}.xml", [("a", 1, 2, 30, 40), ("b", 5.5, 6, 7, 8)])
    elif format == "yolo":
        for path in ("train/1", "val/2"):
            text(source / "labels" / f"{path}.txt", "0 0.5 0.5 0.5 0.5", "1 0.1 0.1 0.2 0.2 0.3 0.4")
        text(
            source / "data.yaml",
            "path: .",
            "train: images/train",
            "val: val.txt",
            "nc: 2",
            "names:",
            "  0: a",
            "  1: b",
        )
        text(source / "val.txt", "images/val/2.jpg")
    else:
        for i, split in ((1, "train"), (2, "val")):
            annotations = [entry(1, i, [1, 2, 30, 40], segmentation=[[1, 1, 2, 2, 3, 1]], area=4, iscrowd=0)]
            coco_json(source / f"{split}.json", [image_entry(i, f"{split}/{i}.jpg")], annotations)
    texts = [path for path in source.rglob("*") if path.is_file() and path.suffix != ".jpg"]
    ends = {"report": 0, "error": 0}
    for number in range(60):
        chosen = texts if format == "voc" else [random.choice(texts)]  # one good xml file is enough for an import
        healthy = {path: path.read_bytes() for path in chosen}
        for path, content in healthy.items():
            path.write_bytes(spoil(content, random))
        try:
            assert import_dataset(format, source, tmp_path / str(number)).written["images"] > 0
            ends["report"] += 1
        except DatasetError as error:
            assert "\n" not in str(error)
            ends["error"] += 1
        for path, content in healthy.items():
            path.write_bytes(content)
    assert min(ends.values()) > 0, ends  # both ends are met


@pytest.mark.parametrize("options, message", [
    ({"unlabelled": "keep"}, "unlabelled: expected drop, background, got 'keep'"),
    ({"hold_out": ("val", 1.5)}, "hold_out: expected a fraction between 0 and 1, got 1.5"),
    ({"splits": {"a/b": "."}}, "splits: expected a name of letters"),
    ({"splits": {"a": "gone"}}, "gone: no such folder"),
    ({"images": ("gone",)}, "gone: no such folder"),
    ({"hold_out": ("val", 0.5)}, "hold_out: expected a source of one split, got train, val"),
    ({"hold_out": ("all", 0.5), "splits": {"all": "."}}, "hold_out: expected another name than the source's split"),
])  # fmt: skip
def test_wrong_options(options, message, small, bring):
    with pytest.raises(DatasetError, match=message):
        bring("voc", **options)


def command(*arguments):
    run = [sys.executable, str(ROOT / "tools" / "import_dataset.py"), *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_command(small, tmp_path):
    done = command("voc", small, tmp_path / "output", "--split", "all=.", "--hold-out", "val=0.5", "--copy")
    assert done.returncode == 0, done.stderr
    assert "all: 1 images, 1 boxes\nval: 1 images, 1 boxes\nin all: 2 of 2 images, 2 of 2 boxes" in done.stdout
    assert (tmp_path / "output" / "import_report.txt").read_text() == done.stdout
    wrong = command("yolo", tmp_path / "gone", tmp_path / "other")
    assert wrong.returncode == 1 and wrong.stderr == f"DatasetError: {tmp_path / 'gone'}: no such folder\n"
    assert command("voc", small, tmp_path / "output", "--hold-out", "val").returncode == 2


def test_a_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    done = command("voc", small, tmp_path / "file" / "output")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Not a directory" in done.stderr
