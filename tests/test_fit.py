"""One's own data in one call: the rules on data sets made for them, and a whole run."""

import json

import pytest
import torch

import ga_scope
from ga_scope.data import load_coco_json
from ga_scope.errors import ConfigError, DatasetError, InputError
from ga_scope.fitting import SYSTEMS, as_text, settings_for

pytest.importorskip("timm", reason="needs timm")


def data_set(folder, images, width, height, side, name="made", tall=None):
    """Images (which nobody opens) with one object each, ``tall`` or as high as wide."""
    tall = side if tall is None else tall
    for i in range(images):
        (folder / f"{i}.jpg").touch()
    content = {
        "images": [{"id": i, "width": width, "height": height, "file_name": f"{i}.jpg"} for i in range(images)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "bbox": [1, 1, side, tall],
                "area": side * tall,
                "iscrowd": 0,
            }
            for i in range(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return load_coco_json(path, folder)


def rules(data, system="ga_faster_rcnn"):
    return {rule.key: rule.value for rule in settings_for(data, system)}


@pytest.mark.parametrize(
    "width, height, side, size, longest",
    [
        (640, 480, 40, 288, 384),  # 24 / 40 * 480
        (640, 480, 200, 256, 352),  # large objects: the least
        (4000, 3000, 30, 800, 1088),  # small ones in large images: the most
        (200, 200, 5, 416, 416),  # no image is enlarged more than twice
        (480, 640, 40, 288, 384),
    ],
)
def test_the_input_is_as_large_as_the_smaller_objects_need(tmp_path, width, height, side, size, longest):
    found = rules(data_set(tmp_path, 250, width, height, side))
    assert (found["INPUT.MIN_SIZE_TEST"], found["INPUT.MAX_SIZE_TEST"]) == (size, longest)
    low, high = found["INPUT.MIN_SIZE_TRAIN"]
    assert low < size < high


@pytest.mark.parametrize(
    "wide, tall, ratios",
    [
        (40, 40, [0.5, 1.0, 2.0]),  # the paper's, at least
        (40, 160, [0.5, 1.0, 2.0, 4.0]),
        (200, 8, [0.125, 0.25, 0.5, 1.0, 2.0]),  # 1 to 25: no further than 8
    ],
)
def test_sampled_shapes_are_as_long_as_the_objects(tmp_path, wide, tall, ratios):
    data = data_set(tmp_path, 250, 640, 480, wide, tall=tall)
    assert rules(data, "ga_rpn")["MODEL.GUIDED_ANCHORING.SHAPE.RATIOS"] == ratios
    assert "MODEL.GUIDED_ANCHORING.SHAPE.RATIOS" not in rules(data, "rpn")


@pytest.mark.parametrize("side, sigma", [(40, 3.0), (200, 8), (1, 2)])
def test_anchors_follow_the_objects(tmp_path, side, sigma):
    """√area in the network's input by the finest stride; sliding anchors and ScopeNet's ranges with it."""
    data = data_set(tmp_path, 250, 640, 480, side)
    assert rules(data)["MODEL.GUIDED_ANCHORING.SIGMA"] == sigma
    sizes = rules(data, "rpn")["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert [len(level) for level in sizes] == [1] * 4 and sizes[0] == [sigma * 8] and sizes[3] == [sigma * 64]
    sizes = rules(data, "retinanet")["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert [len(level) for level in sizes] == [3] * 5
    assert rules(data, "scopenet")["MODEL.SCOPENET.TARGETS.RANGES"] == [sigma * 16 * 2**i for i in range(4)]


@pytest.mark.parametrize("images, steps, few", [(250, 700, True), (40, 300, True), (6250, 3500, False)])
def test_schedule_and_augmentation_follow_the_number_of_images(tmp_path, images, steps, few):
    found = rules(data_set(tmp_path, images, 640, 480, 40))
    assert found["SOLVER.MAX_ITER"] == steps and found["TEST.EVAL_PERIOD"] == steps // 4
    assert found["INPUT.CROP.ENABLED"] == few and ("INPUT.COLOR_JITTER" in found) == few


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_rules_are_settings_of_the_system(tmp_path, system):
    """Each is a key that the system reads, with a value that it takes, and has a reason that is printed."""
    from fvcore.common.config import CfgNode

    from ga_scope.config import load_config
    from ga_scope.config.files import CONFIGS

    found = settings_for(data_set(tmp_path, 250, 640, 480, 40), system)
    options = [part for rule in found for part in (rule.key, rule.value)]
    options += ["MODEL.DEVICE", "cpu", "DATASETS.TEST", ("made",)]
    load_config(CfgNode(), CONFIGS / "real" / "systems" / f"{system}.yaml", options, builtin=True)
    lines = as_text(found).splitlines()
    assert len(lines) == len(found) and all(rule.key in line and rule.why in line for rule, line in zip(found, lines))


@pytest.mark.slow
def test_from_data_to_a_detector(tmp_path, monkeypatch):
    """A configuration and a checkpoint like any other, results with the names of the classes, and a page."""
    from ga_scope.cli import fit as command

    kept = []
    monkeypatch.setattr(command, "fit", lambda *given: kept.append(ga_scope.fit(*given)) or kept[0])
    shapes = ga_scope.data.make_shapes(tmp_path / "shapes", train=12, val=4, size=96, seed=5)
    sets = {split: (shapes / "annotations" / f"instances_{split}.json", shapes / split) for split in ("train", "val")}
    small = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MIN_SIZE_TEST", 96]
    small += ["INPUT.MAX_SIZE_TEST", 96, "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 2]
    small += ["MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu", "SOLVER.WARMUP_ITERS", 1]
    given = ["--backbone", "mobilenetv3_small_050", "--output", tmp_path / "out", "--engine", "torchvision"]
    given += [part for split, files in sets.items() for part in (f"--{split}", *files)]
    command.main([str(part) for part in (*given, *small)])
    (fitted,) = kept
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()
    assert fitted.config.is_file() and fitted.weights.is_file() and 0 <= fitted.metrics["fit_val"]["AP"] <= 1
    detector = fitted.detector()
    assert detector.classes == load_coco_json(*sets["train"]).classes
    image = next((shapes / "val").glob("*.jpg"))
    found = detector(image)
    assert len(found.names) == len(found.boxes)
    again = ga_scope.Detector(fitted.config, fitted.weights, engine="torchvision")(image)
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"system": "yolo"}, "system: expected one of rpn, ga_rpn, .* got 'yolo'"),
        ({"train": "train.json"}, r"train: expected \(annotation file, image folder\), got 'train.json'"),
        ({"train": ("no.json", ".")}, "no.json: no such"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, change, message):
    data_set(tmp_path, 3, 64, 64, 10)
    given = (tmp_path / "made.json", tmp_path)
    with pytest.raises((ConfigError, DatasetError, InputError), match=message):
        ga_scope.fit(**({"train": given, "val": given, "output": tmp_path / "out"} | change))
