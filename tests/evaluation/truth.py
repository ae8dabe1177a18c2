"""Datasets whose answers are known."""

import torch

from ga_scope.data.dataset import Dataset, dataset_of_records
from ga_scope.modeling.results import ImageResult

SMALL, MEDIUM, LARGE = (10, 10, 20, 20), (50, 50, 60, 60), (150, 150, 200, 200)


def record(image_id, boxes, crowd=(), ignore=(), size=400, areas=None):
    """An image with boxes x, y, width, height whose labels alternate between 0 and 1."""
    annotations = [
        {
            "bbox": list(box),
            "category_id": i % 2,
            "iscrowd": int(i in crowd),
            "ignore": int(i in ignore),
            "area": box[2] * box[3] if areas is None else areas[i],
        }
        for i, box in enumerate(boxes)
    ]
    return {"image_id": image_id, "width": size, "height": size, "file_name": f"{image_id}", "annotations": annotations}


def dataset(*records, classes=("a", "b"), category_ids=(5, 9), annotated=True) -> Dataset:
    found = dataset_of_records("mine", list(records), classes)
    found.category_ids, found.annotated = tuple(category_ids), annotated
    return found


def xyxy(boxes):
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).view(-1, 4)


def proposed(boxes, logits=None) -> ImageResult:
    """A result with proposals alone."""
    boxes = xyxy(boxes)
    logits = torch.arange(len(boxes), 0, -1.0) if logits is None else torch.as_tensor(logits)
    return ImageResult(proposals=boxes, proposal_logits=logits)


def detected(boxes, scores=(), classes=()) -> ImageResult:
    """A result with detections alone."""
    return ImageResult(xyxy(boxes), torch.tensor(scores), torch.tensor(classes, dtype=torch.int64))
