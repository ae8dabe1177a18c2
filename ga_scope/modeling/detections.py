"""From class scores of boxes to detections: threshold, top-k, NMS within each class."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .box_coding import clip_boxes


class Detections(NamedTuple):
    """The detections of one image, best first."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,)
    classes: Tensor  # (D,) int64


def select_candidates(scores: Tensor, groups: Tensor, score_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` best (row, class) pairs of each group (a pyramid's level) with a score above ``score_thresh``.

    Args:
        scores: (L, classes). groups: (L,) integers.

    Returns:
        rows and classes, each (M,).
    """
    rows, classes = (scores > score_thresh).nonzero(as_tuple=True)
    parts, of_row, values = [], groups[rows], scores[rows, classes]
    for group in of_row.unique():
        index = (of_row == group).nonzero()[:, 0]
        parts.append(index[values[index].topk(topk).indices] if len(index) > topk else index)
    kept = torch.cat(parts) if parts else rows[:0]
    return rows[kept], classes[kept]


def select_detections(
    boxes: Tensor, scores: Tensor, classes: Tensor, image_size: tuple[int, int], nms_thresh: float, most: int
) -> Detections:
    """The ``most`` best of one image's scored boxes after NMS within each class, clipped to the image.

    Of these, boxes that lie outside the image are dropped.

    Args:
        boxes: (M, 4). scores: (M,). classes: (M,). image_size: (height, width).
    """
    best = batched_nms(boxes, scores, classes, nms_thresh)[:most]
    boxes = clip_boxes(boxes[best], image_size)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Detections(boxes[inside], scores[best][inside], classes[best][inside])
