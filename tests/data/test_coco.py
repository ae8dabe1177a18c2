"""Dirty annotations are counted and mended or dropped; broken files are errors that name them."""

import json
import logging
import math

import pytest
from PIL import Image

from ga_scope.data import load_coco_json, load_dataset, register_datasets
from ga_scope.data.catalog import source_of
from ga_scope.data.coco import DatasetError


@pytest.fixture
def write(tmp_path):
    def make(annotations, images=None, categories=({"id": 7, "name": "b"}, {"id": 3, "name": "a"})):
        images = images or [{"id": 1, "file_name": "1.png", "width": 100, "height": 80}]
        for image in images:
            Image.new("RGB", (100, 80)).save(tmp_path / image.get("file_name", "x.png"))
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))
        return path, tmp_path

    return make


def box(x, y, w, h, category=3, image=1, **more):
    return {"image_id": image, "bbox": [x, y, w, h], "category_id": category, **more}


def test_clean_annotations_pass_unchanged(write):
    records, categories = load_coco_json(
        *write([box(1, 2, 30, 40, iscrowd=0, area=900), box(5, 5, 9, 9, 7, iscrowd=1)])
    )
    assert [c["name"] for c in categories] == ["a", "b"]
    first, second = records[0]["annotations"]
    assert first["bbox"] == [1, 2, 30, 40] and first["category_id"] == 0 and first["area"] == 900
    assert second["category_id"] == 1 and second["iscrowd"] == 1


@pytest.mark.parametrize(
    "bad, problem",
    [
        (box(1, 2, 0, 40), "zero or negative size"),
        (box(1, 2, 30, -4), "zero or negative size"),
        (box(200, 2, 30, 4), "outside the image"),
        (box(-50, 2, 30, 4), "outside the image"),
        (box(math.nan, 2, 30, 4), "not four finite numbers"),
        (box(1, math.inf, 30, 4), "not four finite numbers"),
        ({"image_id": 1, "bbox": [1, 2, 3], "category_id": 3}, "not four finite numbers"),
        ({"image_id": 1, "bbox": ["1", 2, 3, 4], "category_id": 3}, "not four finite numbers"),
        ({"image_id": 1, "category_id": 3}, "not four finite numbers"),
        (box(1, 2, 30, 40, category=99), "unknown category id 99"),
        (box(1, 2, 30, 40, image=99), "unknown image id"),
    ],
)
def test_dirty_annotations_are_dropped_and_counted(write, caplog, bad, problem):
    with caplog.at_level(logging.WARNING):
        records, _ = load_coco_json(*write([box(1, 2, 30, 40), bad, bad]), name="mine")
    assert len(records[0]["annotations"]) == 1
    assert "mine: of 3 annotations: 2 with" in caplog.text and problem in caplog.text


def test_boxes_across_the_border_are_clipped(write, caplog):
    with caplog.at_level(logging.WARNING):
        records, _ = load_coco_json(*write([box(-10, 70, 30, 40), box(90.5, 0, 10, 10)]))
    assert [a["bbox"] for a in records[0]["annotations"]] == [[0, 70, 20, 10], [90.5, 0, 9.5, 10]]
    assert "1 with a box across the border (clipped)" in caplog.text


def test_broken_files_are_named(write, tmp_path):
    path, root = write([])
    with pytest.raises(DatasetError, match="nothing.json: no such annotation file"):
        load_coco_json(root / "nothing.json", root)
    path.write_text('{"images": [')
    with pytest.raises(DatasetError, match="instances.json: not a JSON file"):
        load_coco_json(path, root)
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(DatasetError, match="expected COCO annotations with a list 'categories'"):
        load_coco_json(path, root)
    path.write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    with pytest.raises(DatasetError, match="images: expected 'file_name' in every image"):
        load_coco_json(path, root)


def test_missing_images_are_named(write):
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in (1, 2, 3)]
    path, root = write([], images)
    (root / "2.png").unlink()
    with pytest.raises(DatasetError, match=r"2.png: no such image \(1 of 3 images of .*instances.json are missing"):
        load_coco_json(path, root)


def test_registered_names(write, monkeypatch, tmp_path):
    path, root = write([box(1, 2, 30, 40)])
    entry = [f"set-{tmp_path.name}", str(path), str(root)]
    register_datasets([entry])
    register_datasets([tuple(entry)])  # again: nothing happens
    records, categories = load_dataset(entry[0])
    assert len(records) == 1 and len(categories) == 2
    with pytest.raises(DatasetError, match="the name .* is taken"):
        register_datasets([[entry[0], "elsewhere.json", str(root)]])
    with pytest.raises(DatasetError, match=r"DATASETS.REGISTER: expected \[name, annotation file, image folder\]"):
        register_datasets([["just a name"]])
    with pytest.raises(DatasetError, match="no dataset 'unheard_of'; known: .*coco_2017_train"):
        load_dataset("unheard_of")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    source = source_of("coco_2017_val")
    assert str(source.json_file) == "/somewhere/coco/annotations/instances_val2017.json"
    assert str(source.image_root) == "/somewhere/coco/val2017"
