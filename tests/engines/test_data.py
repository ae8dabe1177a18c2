"""Data on its way through whole runs of both engines: dirty files, functions, results files, errors of a line."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ga_scope.engines import get_engine
from ga_scope.errors import DatasetError

from .conftest import ENGINES, entries, overrides, random_weights, run, setup


def content_of(shapes, split="train"):
    return json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())


def registered(folder, content, images, name="mine"):
    """DATASETS keys for an annotation file with this content, for training and evaluation."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    name = f"{name}_{folder.name}"
    entry = [name, str(path), str(images)]
    return {"DATASETS.REGISTER": [entry], "DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,)}


# ---- B, case_05, case_06: dirty files train and are scored -------------------------------------------


def dirty(content):
    """What has been seen in the wild, one of each."""
    annotations = content["annotations"]
    for i, bad in enumerate(([5, 5, 0, 9], [float("nan"), 1, 4, 4], [900, 900, 5, 5], None, "1,2,3,4")):
        annotations[i]["bbox"] = bad
    annotations[5]["category_id"] = 77
    annotations[6]["iscrowd"] = None
    annotations[7]["iscrowd"] = "0"
    for annotation in annotations[8:20]:  # one flat list
        annotation["segmentation"] = [v for polygon in annotation["segmentation"] for v in polygon]
    annotations[20]["segmentation"] = None
    annotations[21]["ignore"] = 1
    annotations[22]["image_id"] = None
    twice = next(a for a in annotations[23:] if not a["iscrowd"])
    annotations += [copy.deepcopy(twice), 5, None]
    return content


@pytest.mark.parametrize("engine", ENGINES)
def test_dirty_annotations_train(engine, shapes, tmp_path, capsys, losses):
    """To the end and to metrics, with one line on what was found."""
    content = content_of(shapes)
    total = len(content["annotations"]) + 3
    more = registered(tmp_path, dirty(content), shapes / "train", "dirty")
    (metrics,) = run("ga_rpn", engine, overrides(shapes, tmp_path / "out", **more)).values()
    assert len(losses) == 3 and metrics["AR@100"] >= 0
    printed = capsys.readouterr()
    logged = printed.out + printed.err if engine == "torchvision" else (tmp_path / "out" / "log.txt").read_text()
    lines = [line for line in logged.splitlines() if f"of {total} annotations: " in line]
    assert len(lines) == 1
    for problem in ("3 with a box that is not four finite numbers", "1 with a box outside the image",
                    "1 with a box of zero or negative size", "1 with an object that is there twice",
                    "1 with iscrowd that is neither 0 nor 1", "2 with something else than an object",
                    "1 with unknown category id 77", "1 with unknown image id"):  # fmt: skip
        assert problem in lines[0], problem


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_learned_is_what_the_dataset_says(engine, shapes, tmp_path):
    """Crowds and "ignore" are no objects, a box beyond the border is clipped, as either engine's mapper has them."""
    content = content_of(shapes)
    image = content["images"][0]
    mine = [
        {"bbox": [10, 20, 30, 40]},
        {"bbox": [100, 100, 60, 60]},
        {"bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"bbox": [50, 1, 9, 9], "ignore": 1},
    ]
    content["images"] = [image]
    content["annotations"] = [a | {"image_id": image["id"], "category_id": 2, "id": i} for i, a in enumerate(mine)]
    more = registered(tmp_path, content, shapes / "train")
    more |= {"INPUT.MIN_SIZE_TRAIN": (0,), "INPUT.RANDOM_FLIP": "none", "INPUT.MAX_SIZE_TRAIN": 1333}
    for regions in (False, True):
        opts = overrides(shapes, tmp_path / "out", **more, **{"DATASETS.IGNORE_REGIONS": regions})
        cfg = setup("ga_faster_rcnn", opts, engine)
        (record,) = get_engine(engine).training_records(cfg)
        if engine == "torchvision":
            from ga_scope.engines.torchvision.data import TrainMapper

            mapped = TrainMapper(cfg)(record)
            boxes, labels, ignored = mapped["boxes"], mapped["labels"], mapped.get("ignore_boxes")
        else:
            from ga_scope.engines.detectron2.data import TrainMapper
            from ga_scope.engines.detectron2.results import targets_of

            targets = targets_of([TrainMapper(cfg)(record)["instances"].to("cpu")])
            boxes, labels, ignored = targets.boxes[0], targets.classes[0], targets.ignore and targets.ignore[0]
        assert boxes.tolist() == [[10, 20, 40, 60], [100, 100, 128, 128]] and labels.tolist() == [1, 1]
        assert (ignored is not None) == regions
        if regions:
            assert ignored.tolist() == [[1, 1, 10, 10], [50, 1, 59, 10]]


@pytest.mark.parametrize("engine", ENGINES)
def test_images_without_objects_are_left_out_of_training(engine, shapes, tmp_path):
    """Also those that have crowds alone; and none at all is an error before anything begins."""
    content = content_of(shapes)
    first, second = content["images"][:2]
    content["images"] = [first, second]
    box = {"bbox": [10, 20, 30, 40], "category_id": 2}
    content["annotations"] = [box | {"image_id": first["id"]}, box | {"image_id": second["id"], "iscrowd": 1}]
    more = registered(tmp_path, content, shapes / "train")
    for keep in (True, False):
        opts = overrides(shapes, tmp_path / "out", **more, **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": keep})
        records = get_engine(engine).training_records(setup("ga_rpn", opts, engine))
        assert [r["image_id"] for r in records] == ([first["id"]] if keep else [first["id"], second["id"]])
    content["annotations"] = content["annotations"][1:]
    more = registered(tmp_path, content, shapes / "train", "empty")
    with pytest.raises(SystemExit, match="DATASETS.TRAIN: no image of empty_.* has a usable annotation"):
        run("ga_rpn", engine, overrides(shapes, tmp_path / "out", **more))


# ---- errors of a line --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_image_ends_a_run_with_one_line(engine, workers, shapes, tmp_path):
    """Also where a loader's process reads it; what has been learned until then is saved."""
    content = content_of(shapes)
    images = tmp_path / "images"
    images.mkdir()
    for image in content["images"]:
        (images / image["file_name"]).write_bytes((shapes / "train" / image["file_name"]).read_bytes()[:700])
    more = registered(tmp_path, content, images) | {"DATALOADER.NUM_WORKERS": workers}
    with pytest.raises(SystemExit) as error:
        run("ga_rpn", engine, overrides(shapes, tmp_path / "out", **more))
    text = str(error.value)
    assert text.startswith(f"DatasetError: {images}/") and ".jpg: cannot be read as an image: " in text
    assert "\n" not in text and "Traceback" not in text


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_image_ends_an_evaluation_with_one_line(engine, workers, shapes, tmp_path):
    content = content_of(shapes, "val")
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(content["images"]):
        whole = (shapes / "val" / image["file_name"]).read_bytes()
        (images / image["file_name"]).write_bytes(whole if i < 7 else whole[:700])
    opts = overrides(shapes, tmp_path / "out", **registered(tmp_path, content, images))
    opts = [*random_weights("ga_rpn", opts, tmp_path), "DATALOADER.NUM_WORKERS", str(workers)]
    with pytest.raises(SystemExit, match=r"^DatasetError: .*000007.jpg: cannot be read as an image: [^\n]*$"):
        run("ga_rpn", engine, opts, "--eval-only")


@pytest.mark.parametrize("engine", ENGINES)
def test_sizes_that_the_annotations_do_not_say_are_named(engine, shapes, tmp_path):
    content = content_of(shapes)
    for image in content["images"]:
        image["width"] = 127
    opts = overrides(shapes, tmp_path / "out", **registered(tmp_path, content, shapes / "train"))
    with pytest.raises(SystemExit, match=r"expected 127 x 128 pixels \(the annotations\), got 128 x 128$"):
        run("ga_rpn", engine, opts)


# ---- A7: pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_sixteen_bits_train_as_eight(engine, shapes, tmp_path):
    """The same pictures as 8 and as 16 bit files: the network sees the same."""
    content, seen = content_of(shapes), []
    for depth in (8, 16):
        images = tmp_path / f"{depth}"
        images.mkdir()
        for image in content["images"]:
            grey = np.asarray(Image.open(shapes / "train" / image["file_name"].replace("png", "jpg")).convert("L"))
            image["file_name"] = image["file_name"].replace("jpg", "png")
            deep = Image.fromarray(grey if depth == 8 else grey.astype(np.uint16) * 257)
            deep.save(images / image["file_name"])
        more = registered(tmp_path, content, images, f"bits{depth}") | {"INPUT.RANDOM_FLIP": "none"}
        cfg = setup("ga_rpn", overrides(shapes, tmp_path / "out", **more), engine)
        records = get_engine(engine).training_records(cfg)
        if engine == "torchvision":
            from ga_scope.engines.torchvision.data import TrainMapper
        else:
            from ga_scope.engines.detectron2.data import TrainMapper
        seen.append([TrainMapper(cfg)(records[i])["image"] for i in range(len(records))])
    assert len(seen[0]) > 15 and all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*seen))
    assert seen[1][0].float().std() > 10


# ---- A5: functions -----------------------------------------------------------------------------------


def of_function(shapes, split, name, mode="xyxy"):
    """A split of the tiny dataset as somebody's function gives it: VOC-like corners, classes from 0."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    content = content_of(shapes, split)
    kept = []
    for image in content["images"]:
        annotations = []
        for a in content["annotations"]:
            if a["image_id"] != image["id"] or a["iscrowd"]:
                continue
            x, y, w, h = a["bbox"]
            box = [x, y, x + w, y + h] if mode == "xyxy" else [x, y, w, h]
            box_mode = BoxMode.XYXY_ABS if mode == "xyxy" else BoxMode.XYWH_ABS
            annotations.append({"bbox": box, "bbox_mode": box_mode, "category_id": a["category_id"] - 1})
        file = {"file_name": str(shapes / split / image["file_name"]), "image_id": str(image["id"])}
        kept.append(file | {"height": image["height"], "width": image["width"], "annotations": annotations})
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: kept)
    MetadataCatalog.get(name).thing_classes = [c["name"] for c in content["categories"]]
    return kept


@pytest.mark.detectron2
@pytest.mark.parametrize("model", ["faster_rcnn", "scopenet"])
def test_a_registered_function_trains_and_is_scored(model, shapes, tmp_path):
    """It trained to the end and then failed: there was no annotation file to evaluate with. Now its numbers are those
    of the same data in a file.
    """
    train, val = (f"voc_{split}_{tmp_path.name}" for split in ("train", "val"))
    given = of_function(shapes, "train", train)
    of_function(shapes, "val", val)
    before = copy.deepcopy(given)
    more = {"DATASETS.REGISTER": [], "DATASETS.TRAIN": (train,), "DATASETS.TEST": (val,)}
    (metrics,) = run(model, "detectron2", overrides(shapes, tmp_path / "out", **more)).values()
    assert given == before  # whose the dicts are may keep them
    assert "AP" in metrics and "AP-letter" in metrics
    # Scored with weights that find something, against the same objects in COCO's format.
    content = content_of(shapes, "val")
    content["annotations"] = [
        {k: v for k, v in a.items() if k != "area"} for a in content["annotations"] if not a["iscrowd"]
    ]
    thresholds = {"faster_rcnn": {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}, "scopenet": {}}[model]
    opts = overrides(shapes, tmp_path / "eval", **more, **thresholds)
    weights = random_weights(model, opts[: opts.index("DATASETS.TRAIN")] + opts[opts.index("DATALOADER.NUM_WORKERS") :],
                             tmp_path)[-1]  # fmt: skip
    found = []
    for data in (more, registered(tmp_path, content, shapes / "val", "same")):
        opts = overrides(shapes, tmp_path / "eval", **(more | data | thresholds | {"MODEL.WEIGHTS": weights}))
        found.append(run(model, "detectron2", opts, "--eval-only")[data["DATASETS.TEST"][0]])
    assert found[0] == pytest.approx(found[1], abs=1e-9, nan_ok=True)
    assert found[0].get("AR@1000", 1) > 0


@pytest.mark.detectron2
def test_boxes_of_any_kind(shapes, tmp_path):
    engine = get_engine("detectron2")
    found = []
    for mode in ("xyxy", "xywh"):
        name = f"{mode}_{tmp_path.name}"
        of_function(shapes, "val", name, mode)
        found.append(engine.find_dataset(name, False))
    assert np.array_equal(found[0].annotations.boxes, found[1].annotations.boxes) and len(found[0].annotations) > 20
    assert found[0].classes == ("rectangle", "ellipse", "triangle", "star", "letter")


@pytest.mark.detectron2
def test_what_is_wrong_with_a_function_is_named(shapes, tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    record = {"file_name": "a.png", "image_id": 1, "height": 9, "width": 9}
    item = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}

    def broken():
        raise FileNotFoundError("VOC2007/Annotations")

    cases = {
        "raises": (broken, "its function failed: FileNotFoundError: VOC2007/Annotations"),
        "number": (lambda: 5, "expected a list of dicts from its function, got int"),
        "texts": (lambda: ["a"], r"expected a list of dicts from its function, got \{'str'\}"),
        "no_mode": (lambda: [record | {"annotations": [{"bbox": [1, 2, 3, 4], "category_id": 0}]}],
                    r"image 0: annotations\[0\]: expected a bbox of four numbers and its bbox_mode, got .*, None"),
        "no_box": (lambda: [record | {"annotations": [{"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}]}],
                   r"image 0: annotations\[0\]: expected a bbox of four numbers and its bbox_mode, got None"),
        "short": (lambda: [record | {"annotations": [item | {"bbox": [1, 2, 3]}]}],
                  "image 0: .*expected a bbox of four"),
        "class": (lambda: [record | {"annotations": [item | {"category_id": 3}]}],
                  r"image 0: annotations\[0\]: category_id: expected the position of a class, 0 to 1, got 3"),
        "key": (lambda: [{"file_name": "a.png", "annotations": []}], "image 0: expected 'height' in every dict"),
    }  # fmt: skip
    for key, (function, message) in cases.items():
        name = f"wrong_{key}_{tmp_path.name}"
        DatasetCatalog.register(name, function)
        MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
        with pytest.raises(DatasetError, match=f"{name}: {message}") as error:
            get_engine("detectron2").find_dataset(name, False)
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="no dataset 'unheard_of'"):
        get_engine("detectron2").find_dataset("unheard_of", False)


@pytest.mark.detectron2
def test_a_file_registered_with_detectron2(shapes, tmp_path):
    """By register_coco_instances: the project's own reading of the file, clean-up and all."""
    from detectron2.data.datasets import register_coco_instances

    from ga_scope.data import load_coco_json

    name, (_, path, images) = f"theirs_{tmp_path.name}", entries(shapes)[1]
    register_coco_instances(name, {}, path, images)
    assert get_engine("detectron2").find_dataset(name, False) is load_coco_json(path, images)


# ---- case_18: detections as a file, and nothing to score against -------------------------------------


@pytest.fixture(scope="module")
def weights(shapes, tmp_path_factory):
    """A Faster R-CNN that finds much, if it may."""
    folder = tmp_path_factory.mktemp("weights")
    return random_weights("faster_rcnn", overrides(shapes, folder), folder)[-1]


def evaluated(engine, shapes, output, weights, data):
    settings = {"MODEL.WEIGHTS": weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    return run("faster_rcnn", engine, overrides(shapes, output, **settings, **data), "--eval-only")


@pytest.mark.parametrize("engine", ENGINES)
def test_detections_are_written_as_coco_wants_them(engine, shapes, tmp_path, weights):
    """pycocotools reads the file, and what it scores is what the run said."""
    (metrics,) = evaluated(engine, shapes, tmp_path, weights, {}).values()
    path = tmp_path / "coco_instances_results.json"
    found = json.loads(path.read_text())
    assert len(found) > 100 and set(found[0]) == {"image_id", "category_id", "bbox", "score"}
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == metrics["AP"]
    truth = COCO(str(shapes / "annotations" / "instances_val.json"))
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "box_AR@1", "box_AR@10", "box_AR@100")
    for name, value in zip(names, evaluation.stats):
        assert metrics[name] == pytest.approx(value, abs=1e-9) or value == -1, name


@pytest.mark.parametrize("engine", ENGINES)
def test_a_test_set_without_annotations(engine, shapes, tmp_path, weights, capsys):
    """COCO's test-dev: the file is the result; a warning says why there are no scores."""
    content = content_of(shapes, "val")
    del content["annotations"]
    data = registered(tmp_path, content, shapes / "val", "image_info") | {"DATASETS.TRAIN": ()}
    (metrics,) = evaluated(engine, shapes, tmp_path / "out", weights, data).values()
    assert set(metrics) == {"anchors_per_image", "active_fraction"}
    printed = capsys.readouterr()
    assert "has no annotations: there is nothing to score against" in printed.out + printed.err
    (plain,) = evaluated(engine, shapes, tmp_path / "scored", weights, {}).values()
    files = [json.loads((tmp_path / f / "coco_instances_results.json").read_text()) for f in ("out", "scored")]
    assert files[0] == files[1] and len(files[0]) > 100 and "AP" in plain


@pytest.mark.parametrize("engine", ENGINES)
def test_a_test_set_of_nothing(engine, shapes, tmp_path, weights):
    """An empty list of annotations is a statement: whatever is found is false, and of recall there is none."""
    content = content_of(shapes, "val") | {"annotations": []}
    data = registered(tmp_path, content, shapes / "val", "empty") | {"DATASETS.TRAIN": ()}
    (metrics,) = evaluated(engine, shapes, tmp_path / "out", weights, data).values()
    assert np.isnan(metrics["AP"]) and np.isnan(metrics["AR@100"])
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["AP"] is None and (tmp_path / "out" / "coco_instances_results.json").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_without_annotations_there_is_nothing_to_learn(engine, shapes, tmp_path):
    content = content_of(shapes)
    del content["annotations"]
    more = registered(tmp_path, content, shapes / "train", "info")
    with pytest.raises(SystemExit, match="info.json: expected COCO annotations with a list 'annotations' to train on"):
        run("ga_rpn", engine, overrides(shapes, tmp_path / "out", **more))


@pytest.mark.parametrize("engine", ENGINES)
def test_of_several_test_sets_each_has_its_files(engine, shapes, tmp_path, weights):
    second = [f"second_{tmp_path.name}", *entries(shapes)[1][1:]]
    data = {"DATASETS.REGISTER": [*entries(shapes), second], "DATASETS.TEST": (entries(shapes)[1][0], second[0])}
    metrics = evaluated(engine, shapes, tmp_path, weights, data)
    assert list(metrics) == list(data["DATASETS.TEST"])
    first, other = metrics.values()
    assert first == pytest.approx(other, nan_ok=True)
    for name in metrics:
        assert (tmp_path / f"metrics_{name}.json").exists()
        assert (tmp_path / f"{name}_coco_instances_results.json").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_proposals_alone_write_no_detections(engine, shapes, random_rpn, tmp_path):
    (metrics,) = run("ga_rpn", engine, [*random_rpn, "OUTPUT_DIR", str(tmp_path)], "--eval-only").values()
    assert metrics["AR@1000"] > 0 and not list(tmp_path.glob("*results.json"))
