"""Metrics on cases whose answers are known."""

import json
import math

import pytest
import torch

from ga_scope.evaluation import CocoEvaluation, report

CATEGORIES = [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}]


def record(image_id, boxes, crowd=()):
    annotations = [{"bbox": list(b), "category_id": i % 2, "iscrowd": int(i in crowd)} for i, b in enumerate(boxes)]
    return {"image_id": image_id, "width": 400, "height": 400, "file_name": "x", "annotations": annotations}


def xyxy(boxes):
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).view(-1, 4)


SMALL, MEDIUM, LARGE = (10, 10, 20, 20), (50, 50, 60, 60), (150, 150, 200, 200)


def evaluation(records):
    return CocoEvaluation(records, CATEGORIES)


def test_perfect_results():
    found = evaluation([record(1, [SMALL, MEDIUM, LARGE])])
    boxes = xyxy([SMALL, MEDIUM, LARGE])
    found.add_proposals(1, boxes, torch.tensor([3.0, 2.0, 1.0]))
    found.add_detections(1, boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
    found.add_anchors(50, 200)
    metrics = found.metrics()
    for name in ("AR@10", "AR@100", "AR@1000", "AR_S@100", "AR_M@100", "AR_L@100", "AP", "AP50", "AP75", "AP_S"):
        assert metrics[name] == pytest.approx(1.0), name
    assert metrics["anchors_per_image"] == 50 and metrics["active_fraction"] == 0.25


def test_recall_is_averaged_over_thresholds_and_limited_by_count():
    found = evaluation([record(1, [LARGE])])
    x, y, w, h = LARGE
    wrong = [(0, 0, 20, 20)] * 10
    # IoU 0.72: found at 0.50 ... 0.70, five of the ten thresholds. Eleventh in rank: not within 10.
    found.add_proposals(1, xyxy([*wrong, (x, y, w * 0.72, h)]), torch.arange(11, 0, -1.0))
    metrics = found.metrics()
    assert metrics["AR@100"] == pytest.approx(0.5) and metrics["AR@10"] == 0
    assert metrics["AR_L@100"] == pytest.approx(0.5) and math.isnan(metrics["AR_S@100"])
    assert "AP" not in metrics


def test_proposals_are_class_agnostic_and_boxes_are_not():
    found = evaluation([record(1, [MEDIUM, LARGE])])
    boxes = xyxy([MEDIUM, LARGE])
    found.add_proposals(1, boxes, torch.ones(2))
    found.add_detections(1, boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))  # classes swapped
    metrics = found.metrics()
    assert metrics["AR@100"] == 1 and metrics["AP"] == 0


def test_crowds_are_neither_missed_nor_false():
    records = [record(1, [LARGE, MEDIUM], crowd=(1,))]
    found = evaluation(records)
    found.add_detections(1, xyxy([LARGE, MEDIUM]), torch.tensor([0.5, 0.9]), torch.tensor([0, 1]))
    assert found.metrics()["AP"] == pytest.approx(1.0)


def test_nothing_found_and_nothing_there():
    nothing, none = xyxy([]), torch.zeros(0)
    for boxes, expected in (([MEDIUM], lambda value: value == 0), ([], math.isnan)):
        found = evaluation([record(1, boxes)])
        found.add_detections(1, nothing, none, none.long())
        found.add_proposals(1, nothing, none)
        assert expected(found.metrics()["AP"]) and expected(found.metrics()["AR@100"])


def test_metrics_are_those_of_what_the_model_makes():
    found = evaluation([record(1, [MEDIUM])])
    found.add_detections(1, xyxy([]), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert set(found.metrics()) == {"AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"}
    merged = evaluation([record(1, [MEDIUM])])
    merged.merge([found.results()])
    assert merged.metrics()["AP"] == 0


def test_merge_and_report(tmp_path, capsys):
    parts = [evaluation([record(1, [MEDIUM]), record(2, [LARGE])]) for _ in range(2)]
    parts[0].add_proposals(1, xyxy([MEDIUM]), torch.ones(1))
    parts[1].add_proposals(2, xyxy([LARGE]), torch.ones(1))
    whole = evaluation([record(1, [MEDIUM]), record(2, [LARGE])])
    whole.merge([part.results() for part in parts])
    metrics = whole.metrics()
    assert metrics["AR@100"] == 1
    report({"mine": metrics}, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["AR@100"] == 1 and written["AR_S@100"] is None
    assert "AR@100" in capsys.readouterr().out
    report({"a": metrics, "b": metrics}, tmp_path)
    assert (tmp_path / "metrics_a.json").exists() and (tmp_path / "metrics_b.json").exists()
