"""Metrics on cases whose answers are known."""

import contextlib
import io
import json
import logging
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ga_scope.evaluation import Evaluation, metrics_table, report, write_detections
from ga_scope.modeling.results import ImageResult

from .truth import LARGE, MEDIUM, SMALL, dataset, detected, proposed, record, xyxy

BOXES_METRICS = {"AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "box_AR@1", "box_AR@10", "box_AR@100", "AP-a", "AP-b"}

BY_ASPECT = {"AR_aspect_to_2@100", "AR_aspect_2_to_4@100", "AR_aspect_over_4@100"}


def evaluated(*records, results, **more):
    """The metrics of results by image id."""
    found = Evaluation(dataset(*records, **more))
    for image_id, result in results.items():
        found.add(image_id, result)
    return found.metrics()


def test_perfect_results():
    boxes = [SMALL, MEDIUM, LARGE]
    result = replace(proposed(boxes, [3.0, 2.0, 1.0]), boxes=xyxy(boxes), scores=torch.tensor([0.9, 0.8, 0.7]),
                     classes=torch.tensor([0, 1, 0]), anchors=50, locations=200)  # fmt: skip
    metrics = evaluated(record(1, boxes), results={1: result})
    names = {"AR@10", "AR@100", "AR@300", "AR@1000", "AR_S@100", "AR_M@100", "AR_L@100"} | BOXES_METRICS - {"box_AR@1"}
    for name in names:
        assert metrics[name] == pytest.approx(1.0), name
    names |= BY_ASPECT
    assert metrics["anchors_per_image"] == 50 and metrics["active_fraction"] == 0.25
    assert set(metrics) == names | {"anchors_per_image", "active_fraction", "box_AR@1"}


def test_recall_is_averaged_over_thresholds_and_limited_by_count():
    x, y, w, h = LARGE
    wrong = [(0, 0, 20, 20)] * 10
    # IoU 0.72: found at 0.50 ... 0.70, five of the ten thresholds. Eleventh in rank: not within 10.
    metrics = evaluated(record(1, [LARGE]), results={1: proposed([*wrong, (x, y, w * 0.72, h)])})
    assert metrics["AR@100"] == pytest.approx(0.5) and metrics["AR@10"] == 0
    assert metrics["AR_L@100"] == pytest.approx(0.5) and math.isnan(metrics["AR_S@100"])
    assert "AP" not in metrics


def test_recall_by_aspect():
    """Of the longer side by the shorter one, whichever that is: 2 and 4 belong to the range above them."""
    long, tall, square = (0, 0, 100, 20), (150, 0, 20, 60), (0, 50, 40, 30)
    border = (200, 0, 20, 80)
    metrics = evaluated(record(1, [long, tall, square, border]), results={1: proposed([long, square])})
    assert metrics["AR_aspect_to_2@100"] == 1 and metrics["AR_aspect_2_to_4@100"] == 0
    assert metrics["AR_aspect_over_4@100"] == pytest.approx(0.5)
    metrics = evaluated(record(1, [square]), results={1: proposed([square])})
    assert math.isnan(metrics["AR_aspect_over_4@100"]) and metrics["AR_aspect_to_2@100"] == 1


def test_proposals_are_taken_in_the_order_of_their_logits():
    wrong = [(0, 0, 20, 20)] * 10
    metrics = evaluated(record(1, [LARGE]), results={1: proposed([*wrong, LARGE], [*range(10), 99.0])})
    assert metrics["AR@10"] == 1


def test_proposals_are_class_agnostic_and_boxes_are_not():
    result = proposed([MEDIUM, LARGE], [1.0, 1.0])
    result.boxes, result.scores = xyxy([MEDIUM, LARGE]), torch.tensor([0.9, 0.8])
    result.classes = torch.tensor([1, 0])  # classes swapped
    metrics = evaluated(record(1, [MEDIUM, LARGE]), results={1: result})
    assert metrics["AR@100"] == 1 and metrics["AP"] == 0


def test_crowds_are_neither_missed_nor_false():
    found = detected([LARGE, MEDIUM], [0.5, 0.9], [0, 1])
    assert evaluated(record(1, [LARGE, MEDIUM], crowd=(1,)), results={1: found})["AP"] == pytest.approx(1.0)
    assert evaluated(record(1, [LARGE, MEDIUM], crowd=(1,)), results={1: proposed([LARGE])})["AR@100"] == 1


def test_what_is_marked_with_ignore_is_neither_missed_nor_false():
    """Found or not: pycocotools itself takes "ignore" for nothing."""
    image = record(1, [LARGE, MEDIUM], ignore=(1,))
    for boxes, scores, classes in (([LARGE, MEDIUM], [0.5, 0.9], [0, 1]), ([LARGE], [0.5], [0])):
        metrics = evaluated(image, results={1: detected(boxes, scores, classes)})
        assert metrics["AP"] == pytest.approx(1.0) and math.isnan(metrics["AP-b"])
    assert evaluated(image, results={1: proposed([LARGE])})["AR@100"] == 1
    # It is no crowd: a second detection of it is false.
    twice = detected([LARGE, MEDIUM, MEDIUM], [0.5, 0.9, 0.8], [0, 1, 1])
    assert evaluated(image, results={1: twice})["AP-a"] == pytest.approx(1.0)


def test_nothing_found_and_nothing_there():
    for boxes, expected in (([MEDIUM], lambda value: value == 0), ([], math.isnan)):
        result = proposed([])
        result.boxes, result.scores, result.classes = xyxy([]), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        metrics = evaluated(record(1, boxes), results={1: result})
        assert expected(metrics["AP"]) and expected(metrics["AR@100"]) and expected(metrics["box_AR@100"])


def test_an_image_without_a_result_counts():
    """Another process may have failed to say: what is not found is missed."""
    records = record(1, [MEDIUM]), record(2, [MEDIUM])
    assert evaluated(*records, results={1: detected([MEDIUM], [0.9], [0])})["box_AR@100"] == 0.5
    assert evaluated(*records, results={1: proposed([MEDIUM])})["AR@100"] == 0.5


def test_metrics_are_those_of_what_the_model_makes():
    assert set(evaluated(record(1, [MEDIUM]), results={1: detected([])})) == BOXES_METRICS
    proposals = set(evaluated(record(1, [MEDIUM]), results={1: proposed([])}))
    assert proposals == {"AR@10", "AR@100", "AR@300", "AR@1000", "AR_S@100", "AR_M@100", "AR_L@100", *BY_ASPECT}


def test_one_class_has_no_list_of_classes():
    image = record(1, [MEDIUM])
    metrics = evaluated(image, results={1: detected([MEDIUM], [0.9], [0])}, classes=("a",), category_ids=(5,))
    assert metrics["AP"] == pytest.approx(1) and not any(name.startswith("AP-") for name in metrics)


def test_several_processes_as_one():
    records = record(1, [MEDIUM]), record(2, [LARGE])
    parts = [Evaluation(dataset(*records)) for _ in range(2)]
    parts[0].add(1, proposed([MEDIUM]))
    parts[1].add(2, proposed([LARGE]))
    whole = Evaluation(dataset(*records))
    whole.merge([part.results for part in parts])
    assert whole.metrics()["AR@100"] == 1 and parts[0].metrics()["AR@100"] == 0.5


# ---- precisions against pycocotools on a file ----------------------------------------------------------


def random_scene(seed):
    """Records with crowds, wrong classes, near misses and false detections."""
    rng = np.random.default_rng(seed)
    records, results = [], {}
    for image in range(8):
        boxes = np.concatenate([rng.integers(0, 250, (5, 2)), rng.integers(5, 150, (5, 2))], 1)[: rng.integers(0, 6)]
        records.append(record(image, boxes.tolist(), crowd=[i for i in range(5) if rng.random() < 0.2]))
        near = (boxes[rng.integers(len(boxes), size=30)] if len(boxes) else np.zeros((0, 4))) + rng.integers(-9, 9, 4)
        near = np.concatenate([near, rng.integers(5, 150, (20, 4))]).clip(1, 380).astype(float)
        labels = rng.integers(0, 2, len(near)).tolist()
        results[image] = detected(near.tolist(), (rng.integers(0, 40, len(near)) / 40).tolist(), labels)
    return records, results


def by_pycocotools(path, detections):
    """The twelve numbers that COCO's own script prints, of a file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(6))
def test_precisions_are_pycocotools(seed, tmp_path):
    records, results = random_scene(seed)
    images, annotations = [], []
    for r in records:
        images.append({"id": r["image_id"], "height": 400, "width": 400, "file_name": "x"})
        for item in r["annotations"]:
            more = {"id": len(annotations) + 1, "image_id": r["image_id"], "category_id": (5, 9)[item["category_id"]]}
            annotations.append({k: v for k, v in (item | more).items() if k != "ignore"})
    categories = [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    found = Evaluation(dataset(*records))
    for image_id, result in results.items():
        found.add(image_id, result)
    metrics, expected = found.metrics(), by_pycocotools(tmp_path / "truth.json", found.detections())
    names = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "box_AR@1", "box_AR@10", "box_AR@100"]
    for name, value in zip(names, expected.stats):
        assert metrics[name] == pytest.approx(value, abs=1e-12) or (value == -1 and math.isnan(metrics[name])), name
    for k, name in enumerate("ab"):
        values = expected.eval["precision"][:, :, k, 0, -1]
        assert metrics[f"AP-{name}"] == pytest.approx(values[values > -1].mean(), abs=1e-12)


# ---- A5, B: what is scored -----------------------------------------------------------------------------


def test_scores_are_of_the_files_own_boxes():
    """A box across the border is clipped, and one of no size left out, for training; scored is what the file says."""
    across = (380, 100, 40, 40)  # half of it outside the image of 400 px
    metrics = evaluated(record(1, [across, (5, 5, 0, 9)]), results={1: proposed([(380, 100, 20, 40)])})
    assert metrics["AR@100"] == pytest.approx(0.05)  # IoU 0.5 of the first, at one of ten thresholds; half of two


def test_areas_are_those_of_the_file():
    """COCO's are of outlines: a large box may hold a small object."""
    metrics = evaluated(record(1, [LARGE], areas=[900.0]), results={1: detected([LARGE], [0.9], [0])})
    assert metrics["AP_S"] == pytest.approx(1) and math.isnan(metrics["AP_L"])
    assert evaluated(record(1, [LARGE], areas=[900.0]), results={1: proposed([LARGE])})["AR_S@100"] == 1


def test_categories_are_those_of_the_file():
    found = Evaluation(dataset(record(1, [MEDIUM]), record("two", [])))
    found.add("two", detected([LARGE], [0.25], [1]))
    found.add(1, ImageResult(proposals=xyxy([MEDIUM]), proposal_logits=torch.zeros(1)))
    assert found.detections() == [{"image_id": "two", "category_id": 9, "bbox": list(map(float, LARGE)), "score": 0.25}]


# ---- case_18: no annotations ---------------------------------------------------------------------------


def test_without_annotations_there_is_nothing_to_score_against(caplog):
    """But detections, and how many anchors they took."""
    found = Evaluation(dataset(record(1, []), annotated=False))
    found.add(1, replace(detected([MEDIUM], [0.9], [0]), anchors=5, locations=10))
    with caplog.at_level(logging.WARNING):
        metrics = found.metrics()
    assert metrics == {"anchors_per_image": 5, "active_fraction": 0.5} and len(found.detections()) == 1
    assert caplog.messages == ["mine: has no annotations: there is nothing to score against"]


@pytest.mark.parametrize(
    "most, objects, warned", [(100, 100, False), (100, 101, True), (10, 11, True), (300, 101, True)]
)
def test_images_with_more_objects_than_count_are_named(most, objects, warned, caplog):
    """TEST.DETECTIONS_PER_IMAGE, and COCO's hundred, whatever that says."""
    crowded = record("crowded.jpg", [(i, i, 9, 9) for i in range(objects)], crowd=(), size=400)
    found = Evaluation(dataset(record(1, [MEDIUM]), crowded), most)
    found.add(1, detected([MEDIUM], [0.9], [0]))
    with caplog.at_level(logging.WARNING):
        found.metrics()
    expected = f"mine: 1 images have more than the {min(most, 100)} objects that .* up to {objects} in crowded.jpg"
    assert len(caplog.messages) == warned
    if warned:
        assert re.match(expected, caplog.messages[0]), caplog.messages[0]


def test_crowds_and_ignored_ones_do_not_make_an_image_crowded(caplog):
    boxes = [(i, i, 9, 9) for i in range(102)]
    found = Evaluation(dataset(record(1, boxes, crowd=(1,), ignore=(2,))))
    found.add(1, detected([]))
    with caplog.at_level(logging.WARNING):
        found.metrics()
    assert caplog.messages == []


# ---- reports -------------------------------------------------------------------------------------------


def test_report(tmp_path, capsys):
    metrics = evaluated(record(1, [MEDIUM]), record(2, [LARGE]), results={1: proposed([MEDIUM]), 2: proposed([LARGE])})
    report({"mine": metrics}, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert written["AR@100"] == 1 and written["AR_S@100"] is None  # nan is no JSON
    printed = capsys.readouterr().out
    assert printed.startswith("mine:\n") and "AR@100                 100.0 %" in printed and "metrics.json" in printed
    report({"a": metrics, "b": metrics}, tmp_path)
    assert (tmp_path / "metrics_a.json").exists() and (tmp_path / "metrics_b.json").exists()


def test_the_table_has_every_class():
    classes = {f"AP-class {i}": i / 200 for i in range(50)}
    text = metrics_table({"AP": 0.5, "anchors_per_image": 1234.5, **classes, "AP-none": math.nan})
    assert "  AP                      50.0 %" in text and "  anchors_per_image     1234.5\n" in text
    assert (
        "AP by class:" in text and text.count("class ") == 50 and "class 49  24.5" in text and "none       nan" in text
    )
    assert max(map(len, text.splitlines())) <= 100


def test_results_files(tmp_path):
    rows = [{"image_id": 1, "category_id": 5, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}]
    alone = write_detections(tmp_path / "new", "mine", rows, alone=True)
    assert alone.name == "coco_instances_results.json" and json.loads(alone.read_text()) == rows
    assert write_detections(tmp_path, "mine", [], alone=False).name == "mine_coco_instances_results.json"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [alone.name]
