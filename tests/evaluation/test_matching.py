"""Which detection finds which object: against pycocotools, and what the thresholds are worth."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ga_scope.evaluation.matching import NOTHING, REGION, best_f1, match, overlaps


def boxes(generator, count, size=16):
    """On a coarse grid, so that ties are frequent."""
    low = generator.integers(0, size // 4, (count, 2)) * 4
    return np.concatenate([low, low + 4 * generator.integers(2, 6, (count, 2))], 1).astype(float)


def as_coco(truth, labels, regions, region_labels, found, found_labels, scores):
    """pycocotools' matches at IoU 0.5: per detection the object, NOTHING or REGION."""
    xywh = lambda b: [*b[:2].tolist(), *(b[2:] - b[:2]).tolist()]  # noqa: E731
    items = [(b, c, 0) for b, c in zip(truth, labels)] + [(b, c, 1) for b, c in zip(regions, region_labels)]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": int(c) + 1, "bbox": xywh(b), "iscrowd": crowd,
         "area": float((b[2:] - b[:2]).prod())}
        for i, (b, c, crowd) in enumerate(items)
    ]  # fmt: skip
    coco, matches = COCO(), np.full(len(found), NOTHING)
    coco.dataset = {"images": [{"id": 1}], "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    detections = [
        {"image_id": 1, "category_id": int(c) + 1, "bbox": xywh(b), "score": float(s)}
        for b, c, s in zip(found, found_labels, scores)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
    for one in evaluation.evalImgs:
        if one is None or one["aRng"] != evaluation.params.areaRng[0]:
            continue
        for number, object_id, ignored in zip(one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0]):
            if object_id:
                matches[number - 1] = REGION if ignored else object_id - 1
    return matches


@pytest.mark.parametrize("trial", range(30))
def test_against_pycocotools(trial):
    generator = np.random.default_rng(trial)
    truth, found, regions = (boxes(generator, n) for n in (generator.integers(1, 12), 40, trial % 3))
    labels, found_labels = (generator.integers(0, 2, len(b)) for b in (truth, found))
    scores = np.sort(generator.random(40))[::-1]
    ours = match(found, found_labels, truth, labels, regions).objects
    # A crowd of either class is a region of both.
    both = np.concatenate([regions, regions])
    classes = np.repeat([0, 1], len(regions))
    expected = as_coco(truth, labels, both, classes, found, found_labels, scores)
    np.testing.assert_array_equal(ours, expected)
    assert (ours >= 0).any()


def test_of_any_class():
    truth = np.array([[0.0, 0, 10, 10]])
    found = np.array([[0.0, 0, 10, 9], [0, 0, 10, 10]])
    of_class = match(found, np.array([1, 0]), truth, np.array([0]), np.zeros((0, 4)))
    assert of_class.objects.tolist() == [NOTHING, 0] and of_class.best.tolist() == [0, 0]
    np.testing.assert_allclose(of_class.iou, [0.9, 1])
    assert match(found, np.array([1, 0]), truth, np.array([0]), np.zeros((0, 4)), any_class=True).objects.tolist() == [
        0,
        NOTHING,
    ]


def test_nothing_to_match():
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 5, 5], [1, 1, 2, 2]])
    labels = np.zeros(2, dtype=int)
    found = match(some, labels, none, labels[:0], none)
    assert found.objects.tolist() == found.best.tolist() == [NOTHING] * 2 and found.iou.tolist() == [0, 0]
    assert all(len(values) == 0 for values in match(none, labels[:0], some, labels, none))
    assert match(some, labels, none, labels[:0], some[:1]).objects.tolist() == [REGION] * 2
    assert overlaps(none, some).shape == (0, 2)


def test_best_f1_against_all_thresholds():
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(1, 9, 30) / 9  # ties
        right, objects = generator.random(30) < 0.4, 25
        f1 = {t: 2 * right[scores >= t].sum() / ((scores >= t).sum() + objects) for t in np.unique(scores)}
        threshold, value = best_f1(scores, right, objects)
        assert value == pytest.approx(max(f1.values())) and f1[threshold] == pytest.approx(value)
    assert best_f1(np.array([0.5]), np.array([False]), 3) == (1.0, 0.0)
