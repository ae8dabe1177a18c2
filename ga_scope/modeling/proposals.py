"""From scored boxes to proposals: top-k per level, NMS, top-k over all levels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .box_coding import clip_boxes


class Proposals(NamedTuple):
    """The proposals of one image, best first."""

    boxes: Tensor  # (K, 4)
    logits: Tensor  # (K,) objectness

    def to(self, device) -> "Proposals":
        return Proposals(self.boxes.to(device), self.logits.to(device))


def select_proposals(
    boxes: Tensor,
    logits: Tensor,
    levels: Tensor,
    image_size: tuple[int, int],
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
    min_size: float = 0.0,
) -> Proposals:
    """One image's proposals.

    The ``pre_nms_topk`` best of each level are clipped to the image; boxes that are not finite, or of a
    side not above ``min_size``, are dropped; NMS runs within each level; the ``post_nms_topk`` best remain.

    Args:
        boxes: (A, 4). logits: (A,). levels: (A,) integers. image_size: (height, width).
    """
    kept = _topk_per_level(logits, levels, pre_nms_topk)
    boxes, logits, levels = clip_boxes(boxes[kept], image_size), logits[kept], levels[kept]
    sides = boxes[:, 2:] - boxes[:, :2]
    good = (sides > min_size).all(1) & boxes.isfinite().all(1) & logits.isfinite()
    boxes, logits, levels = boxes[good], logits[good], levels[good]
    best = batched_nms(boxes, logits, levels, nms_thresh)[:post_nms_topk]
    return Proposals(boxes[best], logits[best])


def _topk_per_level(logits, levels, count):
    parts = []
    for level in levels.unique():
        index = (levels == level).nonzero()[:, 0]
        parts.append(index[logits[index].topk(count).indices] if len(index) > count else index)
    return torch.cat(parts) if parts else levels.nonzero()[:, 0]
