"""tools/check_data.py: every image opened, every annotation counted, and what the anchors of a configuration reach."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ga_scope.cli.check import check_model
from ga_scope.data.check import check_dataset
from ga_scope.data.coco import load_coco_json
from ga_scope.data.reach import reach
from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import META, description
from ga_scope.errors import CheckpointError

from ..engines.conftest import tool

ROOT = Path(__file__).parents[2]


def written(folder, sizes, annotations, classes=("cat", "dog", "cow")):
    """An annotation file with images of these sizes; annotations are (image, class, box, more) from 0."""
    images = []
    for i, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height), (90, 90, 90)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    entries = [
        {"id": k, "image_id": image, "category_id": label, "bbox": box} | more
        for k, (image, label, box, more) in enumerate(annotations)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    path = folder / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return path


def faulty(folder):
    path = written(
        folder,
        [(64, 48)] * 5,
        [
            (0, 0, [4, 4, 20, 10], {}),
            (0, 1, [4, 4, 2, 40], {}),
            (0, 0, [30, 4, 20, 10], {"iscrowd": 1}),
            (1, 0, [8, 8, 0, 5], {}),
            (1, 0, [200, 8, 5, 5], {}),
            (2, 0, [50, 8, 30, 10], {}),
            (9, 0, [8, 8, 5, 5], {}),
            (3, 7, [8, 8, 5, 5], {}),
        ],
    )
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    Image.new("RGB", (10, 10)).save(folder / "4.png")
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_is_counted_and_named(workers, tmp_path):
    report = check_dataset(load_coco_json(faulty(tmp_path), tmp_path, "mine"), workers)
    assert report.counts == {
        "images": 5, "annotations": 8, "objects": 3, "crowds and ignore regions": 1, "images without an object": 3,
    }  # fmt: skip
    assert [line.split(": ")[0] for line in report.unreadable] == [str(tmp_path / f"{i}.png") for i in (3, 4)]
    assert "expected 64 x 48 pixels (the annotations), got 10 x 10" in report.unreadable[1]
    assert report.left_out == {
        "a box across the border (clipped)": 1,
        "a box of zero or negative size (left out)": 1,
        "a box outside the image (left out)": 1,
        "unknown category id 7 (left out)": 1,
        "unknown image id (left out)": 1,
    }
    assert report.classes == {"cat": 2, "dog": 1, "cow": 0} and not report.clean
    assert report.quantiles["height / width"] == pytest.approx(
        np.percentile([0.5, 20, 10 / 14], (0, 5, 25, 50, 75, 95, 100))
    )
    assert report.quantiles["objects of an image"][-1] == 2 and report.quantiles["objects of an image"][0] == 0
    assert report.worst["the most elongated objects"][0] == f"{tmp_path}/0.png: dog [4, 4, 2, 40]"
    assert report.worst["the smallest objects"][0] == f"{tmp_path}/0.png: dog [4, 4, 2, 40]"
    assert len(report.worst["boxes that are left out"]) == 2
    assert report.worst["the fullest images"][0] == f"{tmp_path}/0.png: 2 objects"
    text = report.as_text()
    assert (
        "images that cannot be used: 2" in text
        and "NOT clean" in text
        and "annotations: 1 with unknown image id" in text
    )


def test_a_clean_dataset(tmp_path):
    path = written(tmp_path, [(64, 48)] * 2, [(0, 0, [4, 4, 20, 10], {}), (1, 2, [4, 4, 20, 10], {})])
    report = check_dataset(load_coco_json(path, tmp_path, "mine"))
    assert report.clean and report.as_text().endswith("nothing is wrong")
    empty = check_dataset(load_coco_json(written(tmp_path, [], []), tmp_path, "none"))
    assert empty.clean and empty.counts["images"] == 0 and empty.as_text()


def test_the_command(tmp_path, capsys):
    main = tool("check_data").main
    options = [
        "--config-file",
        str(ROOT / "configs/shapes/rpn_R_18_FPN.yaml"),
        "--engine",
        "torchvision",
        "--workers",
        "0",
    ]
    faulty(tmp_path)
    name = f"check_{tmp_path.name}"
    entry = ["DATASETS.REGISTER", repr([[name, str(tmp_path / "a.json"), str(tmp_path)]]), "MODEL.DEVICE", "cpu"]
    assert main([*options, "--dataset", name, "--json", str(tmp_path / "new" / "r.json"), *entry]) == 1
    assert "images that cannot be used: 2" in capsys.readouterr().out
    (numbers,) = json.loads((tmp_path / "new" / "r.json").read_text())
    assert numbers["counts"]["objects"] == 3 and not numbers["clean"] and numbers["reach"][-1]["learnt"] == 3


def test_weights_are_what_a_training_can_start_from(tmp_path, capsys):
    """A backbone's alone, too; a checkpoint of a training is a whole model and must fit wholly."""
    engine, config = get_engine("torchvision"), ROOT / "configs/shapes/rpn_R_18_FPN.yaml"
    settings = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    cfg = engine.setup(config, settings)
    state = engine.named_state(engine.build(cfg))
    backbone = {key: value for key, value in state.items() if key.startswith("backbone")}
    assert 0 < len(backbone) < len(state)

    def check(name, content):
        torch.save(content, tmp_path / name)
        check_model(engine, engine.setup(config, [*settings, "MODEL.WEIGHTS", str(tmp_path / name)]))
        return capsys.readouterr().out

    meta = {META: description(cfg, None)}
    assert "backbone.pth: a training can start from it" in check("backbone.pth", {"model": backbone})
    assert "whole.pth: fits the model" in check("whole.pth", {"model": dict(state)} | meta)
    with pytest.raises(CheckpointError, match="no parameter fits"):
        check("other.pth", {"model": {"weight": torch.zeros(3)}})
    with pytest.raises(CheckpointError, match="does not fit the model: .*missing"):
        check("part.pth", {"model": backbone} | meta)


# ---- reach -------------------------------------------------------------------------------------------


def scene(folder, seed=0):
    """Objects of every size and shape in images of two sizes."""
    rng = np.random.default_rng(seed)
    sizes, annotations = [(160, 120), (96, 160)], []
    for image, (width, height) in enumerate(sizes):
        for _ in range(25):
            w, h = np.exp(rng.uniform(np.log(3), np.log(110), 2))
            w, h = min(w, width - 1), min(h, height - 1)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            annotations.append((image, 0, [x, y, w, h], {}))
    return load_coco_json(written(folder, sizes, annotations), folder, "scene")


def iou(a, b):
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def boxes_of(dataset):
    """As the network sees them, with INPUT.MIN_SIZE_TEST 0: as they are."""
    return [box for i in range(len(dataset)) for box in dataset.objects(i)[0].tolist()]


def best_at_any_location(box, stride, offset, shapes):
    """Over the locations around the box's centre."""
    found = 0.0
    for i in range(int(box[0] / stride) - 1, math.ceil(box[2] / stride) + 2):
        for j in range(int(box[1] / stride) - 1, math.ceil(box[3] / stride) + 2):
            x, y = (i + offset) * stride, (j + offset) * stride
            for w, h in shapes:
                found = max(found, iou(box, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    return found


def test_reach_of_fixed_anchors(tmp_path):
    dataset = scene(tmp_path)
    sizes, ratios = [[16], [32], [64], [128], [200]], [0.5, 1.0, 2.0]
    cfg = get_engine("torchvision").setup(
        ROOT / "configs/shapes/rpn_R_18_FPN.yaml",
        ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "0", "MODEL.ANCHOR_GENERATOR.SIZES", repr(sizes),
         "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", repr([ratios])],
    )  # fmt: skip
    rows = reach(cfg, dataset)
    ious = [
        [
            best_at_any_location(box, 4 * 2**k, 0.0, [(s * r**-0.5, s * r**0.5) for s in sizes[k] for r in ratios])
            for k in range(5)
        ]
        for box in boxes_of(dataset)
    ]
    best, level = np.max(ious, 1), np.argmax(ious, 1)
    high = cfg.MODEL.RPN.IOU_THRESHOLDS[1]
    assert [row["learnt"] for row in rows] == [*(int((level == k).sum()) for k in range(5)), 50]
    assert rows[-1]["reached"] == int((best >= high).sum()) and 0 < rows[-1]["reached"] < 50
    assert rows[-1]["only as best"] == 50 - rows[-1]["reached"] and rows[-1]["never"] == 0


def test_reach_of_guided_anchors(tmp_path):
    dataset = scene(tmp_path, 1)
    cfg = get_engine("torchvision").setup(
        ROOT / "configs/shapes/ga_rpn_R_18_FPN.yaml",
        ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "0", "MODEL.GUIDED_ANCHORING.SHAPE.MODE", "sampled"],
    )
    ga, rows = cfg.MODEL.GUIDED_ANCHORING, reach(cfg, dataset)
    learnt, found = [], []
    for box in boxes_of(dataset):
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        k = min(max(math.floor(math.log2(side / (8 * rows[0]["stride"])) + 0.5), 0), 4)
        stride = rows[k]["stride"]
        shapes = [
            (ga.SIGMA * stride * s * r**-0.5, ga.SIGMA * stride * s * r**0.5)
            for s in ga.SHAPE.SCALES
            for r in ga.SHAPE.RATIOS
        ]
        learnt.append(k)
        found.append(best_at_any_location(box, stride, ga.CELL_OFFSET, shapes))
    assert [row["learnt"] for row in rows] == [*np.bincount(learnt, minlength=5), 50]
    high, low = ga.SHAPE.IOU_THRESHOLDS[1], ga.SHAPE.LOW_QUALITY_IOU
    assert rows[-1]["reached"] == sum(v >= high for v in found)
    assert rows[-1]["never"] == sum(v < low for v in found) and rows[-1]["never"] > 0


def test_reach_of_scopenet(tmp_path):
    """A location within the box, within 2 strides of its centre, on the level of its longer side."""
    dataset = scene(tmp_path, 2)
    cfg = get_engine("torchvision").setup(
        ROOT / "configs/shapes/scopenet_R_18_FPN.yaml", ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "0"]
    )
    rows, keys = reach(cfg, dataset), cfg.MODEL.SCOPENET.TARGETS
    reached = 0
    for box in boxes_of(dataset):
        k = sum(max(box[2] - box[0], box[3] - box[1]) / 2 >= limit for limit in keys.RANGES)
        stride, center = rows[k]["stride"], ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        reached += any(
            box[0] < x < box[2] and box[1] < y < box[3]
            and max(abs(x - center[0]), abs(y - center[1])) <= keys.CENTER_RADII[1] * stride
            for x in np.arange(0.5, 64) * stride for y in np.arange(0.5, 64) * stride
        )  # fmt: skip
    assert rows[-1]["reached"] == reached and rows[-1]["never"] == 50 - reached > 0
