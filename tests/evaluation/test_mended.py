"""AP with classes or boxes mended, on cases whose answers are known."""

import pytest
import torch

from ga_scope.evaluation.mended import MendedEvaluation
from ga_scope.modeling.results import ImageResult

from .truth import LARGE, MEDIUM, dataset, record, xyxy

BOXES, CLASSES = xyxy([MEDIUM, LARGE]), torch.tensor([0, 1])  # record() gives them classes 0 and 1
SCORES = torch.tensor([0.9, 0.8])


def evaluated(boxes, classes, scores=SCORES):
    evaluation = MendedEvaluation(dataset(record(1, [MEDIUM, LARGE]), record(2, []), record(3, [LARGE], crowd=(0,))))
    evaluation.add(0, ImageResult(boxes, scores, classes))
    for other in (1, 2):  # no objects there; nothing found
        evaluation.add(other, ImageResult(boxes[:0], scores[:0], classes[:0]))
    return evaluation


def average_precisions(evaluation):
    return {name: values["AP"] for name, values in evaluation.metrics().items()}


def test_perfect_detections_need_no_mending():
    assert all(value == pytest.approx(1) for value in average_precisions(evaluated(BOXES, CLASSES)).values())


def test_wrong_classes():
    evaluation = evaluated(BOXES, 1 - CLASSES)
    found = average_precisions(evaluation)
    assert found["as found"] == found["true boxes"] == 0
    assert found["one class"] == pytest.approx(1) and found["true classes"] == pytest.approx(1)
    assert evaluation.text().endswith("wrong classes cost 100.0 AP, 100.0 AP50\nwrong boxes cost 0.0 AP, 0.0 AP50")


def test_wrong_boxes():
    evaluation = evaluated(BOXES + torch.tensor([0.0, 0, 40, 0]), CLASSES)  # IoU 0.6 and 0.83
    found = average_precisions(evaluation)
    # At three and at seven of the ten thresholds.
    assert found["as found"] == pytest.approx(0.5) and found["true classes"] == pytest.approx(0.5)
    assert found["true boxes"] == pytest.approx(1)
    assert evaluation.text().endswith("wrong classes cost 0.0 AP, 0.0 AP50\nwrong boxes cost 50.0 AP, 0.0 AP50")


def test_the_same_box_in_two_classes_is_one_detection_once_mended():
    """A second box of the object, less sure: no false positive where the classes are one or right."""
    boxes, classes = torch.cat([BOXES, BOXES]), torch.cat([1 - CLASSES, CLASSES])
    found = average_precisions(evaluated(boxes, classes, torch.tensor([0.9, 0.8, 0.7, 0.6])))
    assert found["as found"] < 0.6
    assert found["one class"] == pytest.approx(1) and found["true classes"] == pytest.approx(1)


def test_detections_where_there_are_no_objects():
    evaluation = MendedEvaluation(dataset(record(1, [MEDIUM]), record(2, [])))
    evaluation.add(0, ImageResult(BOXES[:1], SCORES[:1], CLASSES[:1]))
    evaluation.add(1, ImageResult(BOXES, torch.tensor([0.99, 0.98]), torch.zeros(2, dtype=torch.int64)))
    assert all(value == pytest.approx(1 / 3, abs=0.01) for value in average_precisions(evaluation).values())
