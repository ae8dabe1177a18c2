"""What a detector loses to its classes and what to its boxes: its AP again with one of the two mended."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ..data import Dataset
from ..modeling.results import ImageResult
from .coco import Evaluation, precisions

Found = tuple[Tensor, Tensor, Tensor]  # boxes (D, 4), scores (D,), classes (D,)
NMS_THRESHOLD = 0.6
SAME_OBJECT = 0.5  # IoU from which a box is meant for an object, whatever its class
NEAR = 0.1  # IoU from which a box is meant for an object of its class, however badly it fits


def _without_duplicates(boxes, scores, classes) -> Found:
    kept = batched_nms(boxes, scores, classes, NMS_THRESHOLD)
    return boxes[kept], scores[kept], classes[kept]


def _best(overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """The largest overlap of every row and where it is; 0 where there are no columns."""
    if not overlaps.shape[1]:
        return overlaps.new_zeros(len(overlaps)), torch.zeros(len(overlaps), dtype=torch.int64)
    return overlaps.max(1)


def as_found(found: Found, gt_boxes: Tensor, gt_classes: Tensor) -> Found:
    """Nothing is mended."""
    return found


def one_class(found: Found, gt_boxes: Tensor, gt_classes: Tensor) -> Found:
    """All classes are the same; of boxes that then compete the best score stays."""
    boxes, scores, classes = found
    return _without_duplicates(boxes, scores, torch.zeros_like(classes))


def true_classes(found: Found, gt_boxes: Tensor, gt_classes: Tensor) -> Found:
    """A box that lies on an object (IoU 0.5) has the object's class."""
    boxes, scores, classes = found
    overlap, index = _best(box_iou(boxes, gt_boxes))
    if len(gt_boxes):
        classes = torch.where(overlap >= SAME_OBJECT, gt_classes[index], classes)
    return _without_duplicates(boxes, scores, classes)


def true_boxes(found: Found, gt_boxes: Tensor, gt_classes: Tensor) -> Found:
    """A box near an object of its class (IoU 0.1) is that object's."""
    boxes, scores, classes = found
    overlap, index = _best(box_iou(boxes, gt_boxes) * (classes[:, None] == gt_classes))
    if len(gt_boxes):
        boxes = torch.where((overlap >= NEAR)[:, None], gt_boxes[index], boxes)
    return _without_duplicates(boxes, scores, classes)


MENDED = {
    "as found": as_found,
    "one class": one_class,
    "true classes": true_classes,
    "true boxes": true_boxes,
}


class MendedEvaluation:
    """AP of the detections as they are, with the classes taken as one, with the classes right, with the boxes right.

    Args:
        dataset: with the objects.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.evaluations = {name: Evaluation(dataset) for name in MENDED}

    def add(self, index: int, result: ImageResult):
        """The detections of the image of that index."""
        boxes, labels = self.dataset.objects(index)
        gt_boxes, gt_classes = torch.from_numpy(boxes).to(result.boxes.dtype), torch.from_numpy(labels).long()
        image_id = self.dataset.image(index)["image_id"]
        for name, mend in MENDED.items():
            mended = mend((result.boxes, result.scores, result.classes), gt_boxes, gt_classes)
            self.evaluations[name].add(image_id, ImageResult(*mended))

    def metrics(self) -> dict[str, dict[str, float]]:
        """{name of :data:`MENDED`: COCO's metrics}."""
        return {
            name: precisions(self.dataset, evaluation.detections(), one_class=name == "one class")
            for name, evaluation in self.evaluations.items()
        }

    def text(self) -> str:
        """The table for a person, and what classes and boxes cost."""
        metrics = self.metrics()
        lines = [f"{'':14}" + "".join(f"{key:>8}" for key in ("AP", "AP50", "AP75"))]
        for name, values in metrics.items():
            lines.append(f"{name:14}" + "".join(f"{100 * values[key]:8.1f}" for key in ("AP", "AP50", "AP75")))
        for part in ("classes", "boxes"):
            costs = [100 * (metrics[f"true {part}"][key] - metrics["as found"][key]) for key in ("AP", "AP50")]
            lines.append(f"wrong {part} cost {costs[0]:.1f} AP, {costs[1]:.1f} AP50")
        return "\n".join(lines)
