"""Average recall against pycocotools, which must give the same numbers."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ga_scope.evaluation import Evaluation
from ga_scope.modeling.results import ImageResult

from .truth import dataset

COUNTS = (10, 100, 300, 1000)


def random_boxes(rng, count, near=None):
    """x, y, width, height; some near given ones, some equal to them, on whole pixels so that overlaps tie."""
    boxes = np.concatenate([rng.integers(0, 150, (count, 2)), rng.integers(1, 120, (count, 2))], 1).astype(float)
    if near is not None and len(near):
        chosen = near[rng.integers(len(near), size=count)]
        boxes = np.where(rng.random((count, 1)) < 0.7, chosen + rng.integers(-4, 5, (count, 4)), boxes)
        boxes[:, 2:] = boxes[:, 2:].clip(1)
    return boxes


def expected(records, results):
    """COCOeval's recalls {(area, count): value} without regard to classes."""
    annotations = []
    for record in records:
        for item in record["annotations"]:
            annotations.append(item | {"id": len(annotations) + 1, "image_id": record["image_id"], "category_id": 1})
    images = [{"id": r["image_id"], "width": 300, "height": 300} for r in records]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}], "info": {}}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats, evaluation.params.maxDets = False, list(COUNTS)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]
    recall[recall == -1] = np.nan  # no such object
    return {(area, count): recall[:, 0, a, c].mean() for a, area in enumerate("ASML") for c, count in enumerate(COUNTS)}


@pytest.mark.parametrize("seed", range(12))
def test_recall_is_pycocotools(seed):
    rng = np.random.default_rng(seed)
    records, results, proposed = [], [], {}
    for image in range(6):
        boxes = random_boxes(rng, rng.integers(0, 9))
        boxes[: len(boxes) // 3, 2:] = [32, 32]  # an area on a border
        items = [
            {"bbox": b.tolist(), "area": b[2] * b[3], "iscrowd": int(rng.random() < 0.2), "category_id": 0}
            for b in boxes
        ]
        # Distinct objects: the same box twice in a file is one.
        items = list({tuple(item["bbox"]): item for item in items}.values())
        records.append({"image_id": image, "width": 300, "height": 300, "file_name": "x", "annotations": items})
        if image == 1:
            continue  # no proposals at all
        proposals = random_boxes(rng, int(rng.integers(0, 1200)), boxes)
        scores = rng.integers(0, 50, len(proposals)) / 50  # equal ones, too
        corners = np.concatenate([proposals[:, :2], proposals[:, :2] + proposals[:, 2:]], 1)
        proposed[image] = ImageResult(proposals=torch.from_numpy(corners), proposal_logits=torch.from_numpy(scores))
        for box, score in zip(proposals.tolist(), scores.tolist()):
            results.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})
    evaluation = Evaluation(dataset(*records, classes=("thing",), category_ids=(1,)))
    for image, result in proposed.items():
        evaluation.add(image, result)
    found, values = evaluation.metrics(), expected(records, results)
    for count in COUNTS:
        assert found[f"AR@{count}"] == pytest.approx(values["A", count], abs=1e-12)
    for area in "SML":
        assert found[f"AR_{area}@100"] == pytest.approx(values[area, 100], abs=1e-12, nan_ok=True)
