"""Results of a fixed size: what inference with a budget of locations gives.

Every size follows from the images' sizes and the settings alone, and nothing waits for the device, up to and with
non-maximum suppression: such an inference can be captured in a CUDA graph (:mod:`ga_scope.modeling.cuda_graph`),
compiled or exported as one program. Boxes that are fewer than there is room for are followed by zeros.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import nms_mask
from .box_coding import clip_to_sizes
from .detections import Detections
from .proposals import Proposals

# Shapes: N images, K room for the boxes of an image, M candidates of an image.


class PaddedProposals(NamedTuple):
    """The proposals of every image, best first."""

    boxes: Tensor  # (N, K, 4)
    logits: Tensor  # (N, K) objectness
    count: Tensor  # (N,) int64: how many of the K are proposals

    def unpad(self) -> list[Proposals]:
        """Per image, without the padding. Waits for the device."""
        return [Proposals(b[:n], s[:n]) for b, s, n in zip(self.boxes, self.logits, self.count.tolist())]


class PaddedDetections(NamedTuple):
    """The detections of every image, best first."""

    boxes: Tensor  # (N, K, 4)
    scores: Tensor  # (N, K)
    classes: Tensor  # (N, K) int64
    count: Tensor  # (N,) int64: how many of the K are detections

    def unpad(self) -> list[Detections]:
        """Per image, without the padding. Waits for the device."""
        rows = zip(self.boxes, self.scores, self.classes, self.count.tolist())
        return [Detections(b[:n], s[:n], c[:n]) for b, s, c, n in rows]


def pad_proposals(
    boxes: Tensor,
    logits: Tensor,
    valid: Tensor,
    counts: list[int],
    image_sizes: Tensor,
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
    min_size: float = 0.0,
) -> PaddedProposals:
    """:func:`ga_scope.modeling.proposals.select_proposals` for a batch whose levels have the same counts everywhere.

    Args:
        boxes: (N, M, 4). logits: (N, M). valid: (N, M) bool, the others do not count.
        counts: how many of the M are on each level, level by level.
        image_sizes: (N, 2) height and width.
    """
    boxes, logits = clip_to_sizes(boxes, image_sizes), logits.masked_fill(~valid, -torch.inf)
    most = max(min(pre_nms_topk, count) for count in counts)
    kept_boxes, kept_logits = [], []
    # The levels side by side as (N, levels, most): NMS within each is one call.
    for level_boxes, level_logits in zip(boxes.split(counts, 1), logits.split(counts, 1)):
        best = level_logits.topk(min(pre_nms_topk, level_logits.shape[1]), 1)
        room = most - best.values.shape[1]
        kept_boxes.append(torch.nn.functional.pad(_rows(level_boxes, best.indices), (0, 0, 0, room)))
        kept_logits.append(torch.nn.functional.pad(best.values, (0, room), value=-torch.inf))
    boxes, logits = torch.stack(kept_boxes, 1), torch.stack(kept_logits, 1)
    good = ((boxes[..., 2:] - boxes[..., :2]) > min_size).all(-1) & boxes.isfinite().all(-1) & logits.isfinite()
    kept = nms_mask(boxes.flatten(0, 1), nms_thresh, valid=good.flatten(0, 1)).view_as(good)
    boxes, logits, kept = boxes.flatten(1, 2), logits.flatten(1), kept.flatten(1)
    order = logits.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    boxes, logits, kept = _rows(boxes, order), logits.gather(1, order), kept.gather(1, order)
    return PaddedProposals(*_front(kept, post_nms_topk, boxes, logits))


def pad_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    image_sizes: Tensor,
    *,
    nms_thresh: float,
    most: int,
    clip_first: bool = False,
) -> PaddedDetections:
    """:func:`ga_scope.modeling.detections.select_detections` for a batch; candidates of score 0 do not count.

    Args:
        boxes: (N, M, 4). scores: (N, M). classes: (N, M) int64.
        image_sizes: (N, 2) height and width.
        clip_first: boxes are clipped, and those outside the image dropped, before NMS and not after it.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    boxes, scores, classes = _rows(boxes, order), scores.gather(1, order), classes.gather(1, order)
    clipped = clip_to_sizes(boxes, image_sizes)
    inside, valid = (clipped[..., 2:] > clipped[..., :2]).all(-1), scores > 0
    if clip_first:
        boxes, valid = clipped, valid & inside
    kept = nms_mask(boxes, nms_thresh, groups=classes, valid=valid)
    # Those outside take part in NMS and in the count of the best, and are then dropped.
    kept &= (kept.cumsum(1) <= most) & inside
    return PaddedDetections(*_front(kept, most, clipped, scores, classes))


def _rows(values, index):
    """Rows (N, k, ...) of (N, M, ...) at indices (N, k)."""
    return values.gather(1, index[..., None].expand(-1, -1, *values.shape[2:]))


def _front(kept, most, *values):
    """Values (N, M, ...) where (N, M) ``kept`` says, in order, then zeros: (N, min(most, M), ...) each; the number."""
    order = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    kept = kept.gather(1, order)
    front = []
    for value in values:
        rows = _rows(value, order) if value.dim() > 2 else value.gather(1, order)
        front.append(rows.masked_fill(~kept.view(*kept.shape, *[1] * (value.dim() - 2)), 0))
    return (*front, kept.sum(1))
