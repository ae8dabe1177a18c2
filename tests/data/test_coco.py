"""Dirty annotations are counted and mended or left out; what contradicts itself and broken files are errors that name
them.
"""

import json
import logging
import math
import os

import numpy as np
import pytest
from PIL import Image

from ga_scope.data import load_coco_json, load_dataset, register_datasets
from ga_scope.data.catalog import source_of
from ga_scope.errors import DatasetError

IMAGE = {"id": 1, "file_name": "1.png", "width": 100, "height": 80}
CATEGORIES = ({"id": 7, "name": "b"}, {"id": 3, "name": "a"})


@pytest.fixture
def write(tmp_path):
    def make(annotations, images=None, categories=CATEGORIES):
        images = images or [IMAGE]
        for image in images:
            Image.new("RGB", (100, 80)).save(tmp_path / image["file_name"])
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))
        return path, tmp_path

    return make


def box(x, y, w, h, category=3, image=1, **more):
    return {"image_id": image, "bbox": [x, y, w, h], "category_id": category, **more}


GOOD = box(1, 2, 30, 40)


def boxes(record):
    return [annotation["bbox"] for annotation in record["annotations"]]


# ---- clean files -------------------------------------------------------------------------------------


def test_clean_annotations_pass_unchanged(write):
    """Classes go by their numbers; crowds and what is marked with "ignore" are regions and no objects."""
    crowd, ignored = box(5, 5, 9, 9, 7, iscrowd=1), box(50, 5, 20, 9, 7, ignore=1)
    dataset = load_coco_json(*write([box(1, 2, 30, 40, iscrowd=0, area=900), crowd, ignored, box(8, 8, 4, 4, 7)]))
    assert dataset.classes == ("a", "b") and dataset.category_ids == (3, 7) and dataset.annotated
    record = dataset[0]
    assert {k: record[k] for k in ("width", "height", "image_id")} == {"width": 100, "height": 80, "image_id": 1}
    assert record["file_name"].endswith("1.png") and os.path.exists(record["file_name"])
    first, second = record["annotations"]
    assert first == {"bbox": [1, 2, 30, 40], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    assert second["category_id"] == 1
    assert record["ignore_boxes"].tolist() == [[5, 5, 14, 14], [50, 5, 70, 14]]
    table = dataset.annotations
    assert table.areas.tolist() == [900, 81, 180, 16]
    assert table.crowd.tolist() == [False, True, False, False] and table.ignore.tolist() == [False, False, True, False]
    assert [a.tolist() for a in dataset.objects(0)] == [[[1, 2, 31, 42], [8, 8, 12, 12]], [0, 1]]


def test_annotations_of_an_image_stay_in_the_order_of_the_file(write):
    images = [IMAGE | {"id": i, "file_name": f"{i}.png"} for i in (9, 4, 6)]
    found = load_coco_json(*write([box(i, 0, 9, 9, image=(4, 9, 4, 6, 9)[i]) for i in range(5)], images))
    assert [record["image_id"] for record in found] == [9, 4, 6]
    assert [[b[0] for b in boxes(record)] for record in found] == [[1, 4], [0, 2], [3]]
    assert found.starts.tolist() == [0, 2, 4, 5]


# ---- dirty annotations -------------------------------------------------------------------------------

NOT_A_BOX, NO_IMAGE, NO_FLAG = "a box that is not four finite numbers", "unknown image id", "that is neither 0 nor 1"
DIRTY = [
    (box(1, 2, 0, 40), "a box of zero or negative size"),
    (box(1, 2, 30, -4), "a box of zero or negative size"),
    (box(200, 2, 30, 4), "a box outside the image"),
    (box(-50, 2, 30, 4), "a box outside the image"),
    (box(100, 2, 30, 4), "a box outside the image"),
    (box(1e308, 2, 30, 4), "a box outside the image"),
    *(
        (GOOD | {"bbox": wrong}, NOT_A_BOX)
        for wrong in (
            [math.nan, 2, 30, 4],
            [1, math.inf, 30, 4],
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            ["1", 2, 3, 4],
            [1, 2, 3, None],
            [1, 2, 3, [4]],
            [1, 2, 3, True],
            [[1, 2, 3, 4]],
            [10**400, 2, 3, 4],
            [],
            {},
            {"x": 1, "y": 2, "w": 3, "h": 4},
            "1,2,3,4",
            7,
            None,
        )
    ),
    ({"image_id": 1, "category_id": 3}, NOT_A_BOX),
    *((GOOD | {"image_id": wrong}, NO_IMAGE) for wrong in (99, "1", 1.5, None, [1], {}, True, 10**30, "x")),
    ({"bbox": [1, 2, 3, 4], "category_id": 3}, NO_IMAGE),
    *(
        (GOOD | {"category_id": wrong}, f"unknown category id {json.dumps(wrong)}")
        for wrong in (99, "3", 3.5, None, [3], {}, True, 10**30)
    ),
    ({"image_id": 1, "bbox": [1, 2, 3, 4]}, "unknown category id null"),
    *((GOOD | {"iscrowd": wrong}, f"iscrowd {NO_FLAG}") for wrong in ("0", 2, -1, 0.5, [0], {}, "true", math.nan)),
    *((GOOD | {"ignore": wrong}, f"ignore {NO_FLAG}") for wrong in ("1", 3, [1], {})),
    *((wrong, "something else than an object") for wrong in (None, 5, "x", [], [GOOD], True)),
]


@pytest.mark.parametrize("bad, problem", DIRTY)
def test_dirty_annotations_are_left_out_and_counted(write, caplog, bad, problem):
    with caplog.at_level(logging.WARNING):
        dataset = load_coco_json(*write([GOOD, bad, bad]), name="mine")
    assert boxes(dataset[0]) == [[1, 2, 30, 40]] and len(dataset[0]["ignore_boxes"]) == 0
    assert caplog.messages == [f"mine: of 3 annotations: 2 with {problem} (left out)"]


@pytest.mark.parametrize(
    "key, value, crowd",
    [
        ("iscrowd", None, False),
        ("iscrowd", False, False),
        ("iscrowd", 0.0, False),
        ("iscrowd", True, True),
        ("iscrowd", 1.0, True),
        ("ignore", None, False),
        ("ignore", 0, False),
        ("ignore", True, True),
        ("image_id", 1.0, False),
        ("category_id", 3.0, False),
        ("segmentation", None, False),
        ("segmentation", [1, 2, 30, 2, 30, 40], False),
        ("segmentation", "a word", False),
        ("segmentation", [[math.nan] * 6], False),
        ("keypoints", 5, False),
        ("id", None, False),
        ("id", "x", False),
        ("attributes", {"occluded": True}, False),
    ],
)
def test_what_exporters_write_is_understood(write, caplog, key, value, crowd):
    """null for 0, 1.0 for 1, flat outlines where only boxes are wanted: nothing to warn of."""
    with caplog.at_level(logging.WARNING):
        dataset = load_coco_json(*write([GOOD, box(5, 5, 20, 20) | {key: value}]))
    record = dataset[0]
    assert boxes(record)[1:] == ([] if crowd else [[5, 5, 20, 20]])
    assert record["ignore_boxes"].tolist() == ([[5, 5, 25, 25]] if crowd else [])
    assert caplog.messages == []


@pytest.mark.parametrize("area, counted", [(None, False), ("12", True), ([1], True), ({}, True), (math.nan, True),
                                           (True, True), (10**400, True)])  # fmt: skip
def test_an_area_that_is_no_number_is_the_boxs(write, caplog, area, counted):
    with caplog.at_level(logging.WARNING):
        dataset = load_coco_json(*write([box(5, 5, 20, 10, area=area)]), name="mine")
    assert dataset.annotations.areas.tolist() == [200] and len(boxes(dataset[0])) == 1
    warning = "mine: of 1 annotations: 1 with an area that is no number (the box's is taken)"
    assert caplog.messages == ([warning] if counted else [])


def test_boxes_across_the_border_are_clipped(write, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load_coco_json(*write([box(-10, 70, 30, 40), box(90.5, 0, 10, 10), box(-0.4, 0, 9, 9)]), name="mine")
    found = boxes(dataset[0])
    assert found[:2] == [[0, 70, 20, 10], [90.5, 0, 9.5, 10]] and found[2] == pytest.approx([0, 0, 8.6, 9])
    # Fractions of a pixel, which COCO's own boxes have, are not worth a warning.
    assert caplog.messages == ["mine: of 3 annotations: 1 with a box across the border (clipped)"]


def test_an_object_that_is_there_twice_is_one(write, caplog):
    """Same image, class and box. A crowd of the same box is something else, and so is another class."""
    same = [box(1, 2, 30, 40), box(1, 2, 30, 40, area=3), box(1, 2, 30, 40, 7), box(1, 2, 30, 40, iscrowd=1)]
    with caplog.at_level(logging.WARNING):
        dataset = load_coco_json(*write([*same, box(1, 2, 30, 40), box(1, 2, 30, 41)]), name="mine")
    assert [(a["bbox"][3], a["category_id"]) for a in dataset[0]["annotations"]] == [(40, 0), (40, 1), (41, 0)]
    assert len(dataset[0]["ignore_boxes"]) == 1
    assert caplog.messages == ["mine: of 6 annotations: 2 with an object that is there twice (left out)"]


def test_all_problems_are_one_line(write, caplog):
    with caplog.at_level(logging.WARNING):
        load_coco_json(*write([GOOD, box(1, 2, 0, 4), box(1, 2, 3, 4, 99), box(1, 2, 3, 4, 98), None]), name="mine")
    (line,) = caplog.messages
    assert line == (
        "mine: of 5 annotations: 1 with a box of zero or negative size (left out); "
        "1 with something else than an object (left out); 1 with unknown category id 98 (left out); "
        "1 with unknown category id 99 (left out)"
    )


# ---- outlines and keypoints --------------------------------------------------------------------------

SQUARE = [1, 2, 31, 2, 31, 42, 1, 42]


@pytest.mark.parametrize(
    "outline, usable",
    [
        ([SQUARE], [SQUARE]),
        ([SQUARE, SQUARE[:6]], [SQUARE, SQUARE[:6]]),
        (SQUARE, [SQUARE]),
        ([SQUARE, [1, 2, 3, 4]], [SQUARE]),
        ([SQUARE, [1, 2, 3, 4, 5, 6, 7]], [SQUARE]),
        ([SQUARE, "x", None, [1, 2, 3, 4, 5, "6"]], [SQUARE]),
        ([[1, 2, 3, 4]], None),
        ([[math.nan] * 6], None),
        ([None], None),
        ([], None),
        (None, None),
        ("outline", None),
        (7, None),
        ({}, None),
        ({"counts": [8000], "size": [80, 100]}, {"counts": [8000], "size": [80, 100]}),
        ({"counts": [100, 200, 7700], "size": [80, 100]}, {"counts": [100, 200, 7700], "size": [80, 100]}),
        ({"counts": "PPYo0", "size": [80, 100]}, {"counts": "PPYo0", "size": [80, 100]}),
        ({"counts": [8000], "size": [100, 80]}, None),  # of another image
        ({"counts": [100, 200], "size": [80, 100]}, None),  # not all of it
        ({"counts": [8100, -100], "size": [80, 100]}, None),
        ({"counts": [8000.0], "size": [80, 100]}, None),
        ({"counts": None, "size": [80, 100]}, None),
        ({"counts": [8000], "size": 2}, None),
        ({"size": [80, 100]}, None),
    ],
)
def test_outlines(write, outline, usable):
    """Only on request; an object without a usable one is none to a mask head."""
    path, root = write([box(1, 2, 30, 40, segmentation=outline), box(5, 5, 9, 9, segmentation=[SQUARE])])
    assert "segmentation" not in load_coco_json(path, root)[0]["annotations"][0]
    dataset = load_coco_json(path, root, extras=True)
    assert dataset[0]["annotations"][0].get("segmentation") == usable
    assert len(dataset.outlined()[0]["annotations"]) == (1 if usable is None else 2)


def test_outlines_that_are_left_out_are_counted(write, caplog):
    dataset = load_coco_json(*write([GOOD, box(5, 5, 9, 9, segmentation=[SQUARE]), box(9, 9, 9, 9, iscrowd=1)]),
                             name="mine", extras=True)  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert boxes(dataset.outlined()[0]) == [[5, 5, 9, 9]]
    assert caplog.messages == ["mine: 1 annotations without an outline (left out, MODEL.MASK_ON)"]
    assert len(boxes(dataset[0])) == 2  # the dataset itself stays


@pytest.mark.parametrize(
    "keypoints, usable",
    [([1, 2, 2], True), ([1, 2, 2, 3, 4, 0], True), ([1, 2], False), ([], False), (["a", 1, 2], False), ("x", False),
     ([[1, 2, 3]], False), (None, False), ([math.nan, 1, 2], False)],
)  # fmt: skip
def test_keypoints(write, keypoints, usable):
    dataset = load_coco_json(*write([box(1, 2, 30, 40, keypoints=keypoints)]), extras=True)
    assert dataset[0]["annotations"][0].get("keypoints") == (keypoints if usable else None)


# ---- images and categories ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["id", "file_name", "width", "height"])
def test_images_need_their_keys(write, key):
    path, root = write([])
    content = json.loads(path.read_text())
    del content["images"][0][key]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"instances.json: images\[0\]: expected '{key}' in every image, got \{{"):
        load_coco_json(path, root)


SIDES = ("width", "height")
WRONG_IMAGES = [
    *(("id", wrong, "a whole number or text") for wrong in (None, 1.5, True, [1], {})),
    *(("file_name", wrong, "text") for wrong in (None, 5, ["1.png"], {})),
    *(("file_name", wrong, "the name of a file") for wrong in ("", "a\0b")),
    *(
        (key, wrong, "a whole number")
        for key in ("width", "height")
        for wrong in (None, "80", 80.5, True, [80], math.nan)
    ),
    *((key, wrong, "a positive number of pixels") for key in ("width", "height") for wrong in (0, -3, 2**31, 10**30)),
]


@pytest.mark.parametrize("key, wrong, expected", WRONG_IMAGES)
def test_wrong_images_are_named(write, key, wrong, expected):
    path, root = write([])
    content = json.loads(path.read_text())
    content["images"].append(IMAGE | {"id": 2, key: wrong})
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"instances.json: images\[1\]: {key}: expected {expected}, got ") as error:
        load_coco_json(path, root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [None, 5, "x", []])
@pytest.mark.parametrize("key", ["images", "categories"])
def test_entries_that_are_no_objects_are_named(write, key, wrong):
    path, root = write([])
    content = json.loads(path.read_text())
    content[key].append(wrong)
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"{key}\[{len(content[key]) - 1}\]: expected an object, got "):
        load_coco_json(path, root)


def test_numbers_of_images_that_exporters_write_are_understood(write):
    path, root = write([box(1, 2, 3, 4, image=7)])
    content = json.loads(path.read_text())
    content["images"] = [{"id": 7.0, "file_name": "1.png", "width": 100.0, "height": 80.0}]
    path.write_text(json.dumps(content))
    (record,) = load_coco_json(path, root)
    assert record["image_id"] == 7 and (record["width"], record["height"]) == (100, 80) and len(boxes(record)) == 1
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "seven"
    path.write_text(json.dumps(content))
    (record,) = load_coco_json(path, root)
    assert record["image_id"] == "seven" and len(boxes(record)) == 1


@pytest.mark.parametrize("second, name", [(1, "1"), (1.0, "1")])
def test_two_images_with_one_id_contradict_each_other(write, second, name):
    path, root = write([], [IMAGE, IMAGE | {"id": 2, "file_name": "2.png"}])
    path.write_text(path.read_text().replace('"id": 2', f'"id": {second}'))
    with pytest.raises(DatasetError, match=rf"images\[1\]: id: expected another than images\[0\] has, got {name}$"):
        load_coco_json(path, root)


A = {"id": 3, "name": "a"}


@pytest.mark.parametrize(
    "categories, message",
    [
        ([A, {"id": 3, "name": "b"}], r"categories\[1\]: id: expected another than 'a' has, got 3"),
        ([A, {"id": 4, "name": "a"}], r"categories\[1\]: name: expected another than id 3 has, got 'a'"),
        ([{"id": "3", "name": "a"}], r'categories\[0\]: id: expected a whole number, got "3"'),
        ([{"id": 3.5, "name": "a"}], r"categories\[0\]: id: expected a whole number, got 3.5"),
        ([{"id": True, "name": "a"}], r"categories\[0\]: id: expected a whole number, got true"),
        ([{"name": "a"}], r"categories\[0\]: id: expected a whole number, got null"),
        ([{"id": 3}], r"categories\[0\]: name: expected text, got null"),
        ([{"id": 3, "name": 7}], r"categories\[0\]: name: expected text, got 7"),
    ],
)  # fmt: skip
def test_wrong_categories_are_named(write, categories, message):
    with pytest.raises(DatasetError, match=f"instances.json: {message}"):
        load_coco_json(*write([], categories=categories))


# ---- files -------------------------------------------------------------------------------------------


def test_broken_files_are_named(write, tmp_path):
    path, root = write([])
    with pytest.raises(DatasetError, match="nothing.json: no such annotation file"):
        load_coco_json(root / "nothing.json", root)
    with pytest.raises(DatasetError, match=f"{root}: cannot be read: Is a directory"):
        load_coco_json(root, root)
    for text in ("", "{", '{"images": [', path.read_text() + "x", "[" * 200_000):
        path.write_text(text)
        with pytest.raises(DatasetError, match="instances.json: not a JSON file: ") as error:
            load_coco_json(path, root)
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match="instances.json: not a JSON file"):
        load_coco_json(path, root)
    for text in ("[]", "5", "null", '"x"'):
        path.write_text(text)
        with pytest.raises(DatasetError, match="instances.json: expected COCO annotations with a list 'images'"):
            load_coco_json(path, root)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("wrong", [{}, 5, "x"])
def test_lists_that_are_none_are_named(write, key, wrong):
    path, root = write([])
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: wrong}))
    with pytest.raises(DatasetError, match=f"instances.json: expected COCO annotations with a list '{key}'"):
        load_coco_json(path, root)


def test_text_with_a_byte_order_mark_is_read(write):
    path, root = write([GOOD])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_coco_json(path, root)[0]["annotations"]) == 1


@pytest.mark.parametrize("annotations", ["absent", "null"])
def test_a_file_of_images_alone(write, annotations):
    """COCO's image_info_test-dev2017.json. An empty list is something else: nothing is there to be found."""
    path, root = write([])
    content = json.loads(path.read_text())
    del content["annotations"]
    if annotations == "null":
        content["annotations"] = None
    path.write_text(json.dumps(content))
    dataset = load_coco_json(path, root)
    assert not dataset.annotated and len(dataset) == 1 and dataset[0]["annotations"] == []
    assert load_coco_json(*write([])).annotated


def test_missing_images_are_named(write):
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in (1, 2, 3)]
    path, root = write([], images)
    (root / "2.png").unlink()
    with pytest.raises(DatasetError, match=r"2.png: no such image \(1 of 3 images of .*instances.json are missing"):
        load_coco_json(path, root)
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "sub/2.png"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"sub/2.png: no such image \(1 of 3"):
        load_coco_json(path, root)


def test_a_file_is_parsed_once(write, monkeypatch):
    """And again if it changes, is asked for with outlines, or with another folder of images."""
    path, root = write([GOOD])
    first = load_coco_json(path, root)
    assert load_coco_json(str(path), root, "another name") is first
    assert load_coco_json(path, root, extras=True) is not first
    path.write_text(path.read_text() + " ")
    assert load_coco_json(path, root) is not first


def test_what_is_learned_and_what_is_scored(write):
    """Left out of training, an annotation is in the table that scores are made of, as the file has it."""
    across = box(-10, 70, 30, 40)
    dataset = load_coco_json(*write([GOOD, box(200, 2, 30, 4), across, GOOD]))
    assert boxes(dataset[0]) == [[1, 2, 30, 40], [0, 70, 20, 10]]
    assert dataset.annotations.boxes.tolist() == [[1, 2, 30, 40], [200, 2, 30, 4], [-10, 70, 30, 40], [1, 2, 30, 40]]
    assert dataset.annotations.usable.tolist() == [True, False, True, False]
    assert dataset.annotations.clipped[2].tolist() == [0, 70, 20, 10]


# ---- names -------------------------------------------------------------------------------------------


def test_registered_names(write, monkeypatch, tmp_path):
    path, root = write([GOOD])
    entry = [f"set-{tmp_path.name}", str(path), str(root)]
    register_datasets([entry])
    register_datasets([tuple(entry)])  # again: nothing happens
    dataset = load_dataset(entry[0])
    assert len(dataset) == 1 and len(dataset.classes) == 2 and dataset.name == entry[0]
    with pytest.raises(DatasetError, match="the name .* is taken"):
        register_datasets([[entry[0], "elsewhere.json", str(root)]])
    with pytest.raises(DatasetError, match="the name 'coco_2017_val' is taken"):
        register_datasets([["coco_2017_val", str(path), str(root)]])
    for wrong in (["just a name"], "text", ["a", "b", 3], None, ["a", "b", "c", "d"]):
        with pytest.raises(DatasetError, match=r"DATASETS.REGISTER: expected \[name, annotation file, image folder\]"):
            register_datasets([wrong])
    with pytest.raises(DatasetError, match="no dataset 'unheard_of'; known: .*coco_2017_train"):
        load_dataset("unheard_of")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    source = source_of("coco_2017_val")
    assert str(source.json_file) == "/somewhere/coco/annotations/instances_val2017.json"
    assert str(source.image_root) == "/somewhere/coco/val2017"


def test_columns_are_compact(write):
    dataset = load_coco_json(*write([GOOD, GOOD | {"category_id": 7}]))
    table = dataset.annotations
    per_annotation = sum(column.nbytes for column in vars(table).values() if isinstance(column, np.ndarray)) / 2
    assert per_annotation == 2 * 32 + 4 + 8 + 3  # two boxes, label, area, three flags
