"""From scored rows to proposals and detections: the best of each level, non-maximum suppression, the best of all.

Every size follows from the sizes of what comes in, and nothing waits for the device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import nms_mask
from .box_coding import clip_to_sizes
from .locations import LocationList
from .results import Detections, Proposals

# Shapes: N images, L rows of the batch, R rows of an image on a level, M candidates of an image, K results.


class Candidates(NamedTuple):
    """The best rows of every image and level."""

    rows: Tensor  # (N, M) int64, of the L
    scores: Tensor  # (N, M), -inf where a level has fewer
    counts: list[int]  # how many of the M are on each level


def best_rows(locations: LocationList, scores: Tensor, most: int) -> Candidates:
    """The ``most`` best of the scores (L,) on every level of every image."""
    rows, values = [], []
    for slots, part in zip(locations.slots, locations.per_level(scores, -torch.inf)):
        top = part.topk(min(most, part.shape[1]), 1)
        rows.append(slots.gather(1, top.indices))
        values.append(top.values)
    return Candidates(torch.cat(rows, 1), torch.cat(values, 1), [part.shape[1] for part in rows])


class ClassCandidates(NamedTuple):
    """The best pairs of a row and a class of every image, level by level."""

    rows: Tensor  # (N, M) int64, of the L
    scores: Tensor  # (N, M), 0 where there are fewer
    classes: Tensor  # (N, M) int64


def best_classes(
    locations: LocationList, logits: Tensor, most: int, threshold: float, quality: Tensor | None = None
) -> ClassCandidates:
    """The ``most`` best (row, class) of every level and image, of those with a probability above ``threshold``.

    Args:
        logits: (L, classes).
        quality: (L,), what the probabilities are multiplied by before they are compared.
    """
    # The best class of a row decides whether any of its classes is among the best: the other classes' probabilities
    # are computed at the best rows only.
    best = logits.amax(1).float().sigmoid()
    rank = best if quality is None else best * quality
    # A row without a class above the threshold takes no other's place, whatever its quality.
    rows, present, counts = best_rows(locations, rank.masked_fill(best <= threshold, -torch.inf), most)
    scores = logits[rows].float().sigmoid()
    counted = (scores > threshold) & (present > -torch.inf)[..., None]
    if quality is not None:
        scores = scores * quality[rows][..., None]
    scores, classes, first, parts = scores.masked_fill(~counted, 0), logits.shape[1], 0, []
    for part in scores.split(counts, 1):
        top = part.flatten(1).topk(min(most, part[0].numel()), 1)
        parts.append((rows.gather(1, top.indices // classes + first), top.values, top.indices % classes))
        first += part.shape[1]
    return ClassCandidates(*(torch.cat(of_levels, 1) for of_levels in zip(*parts)))


def select_proposals(
    candidates: Candidates,
    boxes: Tensor,
    image_sizes: Tensor,
    *,
    post_nms_topk: int,
    nms_thresh: float,
    min_size: float = 0.0,
) -> Proposals:
    """NMS within each level, then the ``post_nms_topk`` best of all.

    Boxes are clipped to their image first; those that are not finite, or of a side not above ``min_size``, are dropped.

    Args:
        candidates: whose scores are the proposals' logits.
        boxes: (N, M, 4) of the candidates.
        image_sizes: (N, 2) height and width.
    """
    boxes, logits, most = clip_to_sizes(boxes, image_sizes), candidates.scores, max(candidates.counts)
    # The levels side by side as (N, levels, most): NMS within each is one call.
    parts = zip(boxes.split(candidates.counts, 1), logits.split(candidates.counts, 1))
    padded = [
        (F.pad(box, (0, 0, 0, most - box.shape[1])), F.pad(logit, (0, most - logit.shape[1]), value=-torch.inf))
        for box, logit in parts
    ]
    boxes, logits = (torch.stack(of_levels, 1) for of_levels in zip(*padded))
    good = ((boxes[..., 2:] - boxes[..., :2]) > min_size).all(-1) & boxes.isfinite().all(-1) & logits.isfinite()
    kept = nms_mask(boxes.flatten(0, 1), nms_thresh, valid=good.flatten(0, 1)).view_as(good)
    boxes, logits, kept = boxes.flatten(1, 2), logits.flatten(1), kept.flatten(1)
    # Those that are left have logits above -inf, so they come first.
    best = logits.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True)
    order, count = best.indices[:, :post_nms_topk], kept.sum(1).clamp(max=post_nms_topk)
    kept = torch.arange(order.shape[1], device=order.device) < count[:, None]
    boxes, logits = rows_of(boxes, order), best.values[:, :post_nms_topk]
    return Proposals(boxes.masked_fill(~kept[..., None], 0), logits.masked_fill(~kept, 0), count)


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    origins: Tensor,
    image_sizes: Tensor,
    *,
    nms_thresh: float,
    most: int,
    clip_first: bool,
) -> Detections:
    """The ``most`` best after NMS within each class, clipped to their image; without those outside it.

    Args:
        boxes: (N, M, 4). scores: (N, M), 0 for what does not count. classes, origins: (N, M) int64.
        image_sizes: (N, 2) height and width.
        clip_first: boxes are clipped, and those outside the image dropped, before NMS and not after it.
    """
    order = scores.sort(dim=1, descending=True, stable=True)
    boxes, scores = rows_of(boxes, order.indices), order.values
    classes, origins = classes.gather(1, order.indices), origins.gather(1, order.indices)
    clipped = clip_to_sizes(boxes, image_sizes)
    valid = (scores > 0) & boxes.isfinite().all(-1)
    inside = (clipped[..., 2:] > clipped[..., :2]).all(-1)
    if clip_first:
        boxes, valid = clipped, valid & inside
    kept = nms_mask(boxes, nms_thresh, groups=classes, valid=valid)
    # Those outside take part in NMS and in the count of the best, and are then dropped.
    kept &= (kept.cumsum(1) <= most) & inside
    order = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    kept = kept.gather(1, order)
    numbers = (values.gather(1, order).masked_fill(~kept, 0) for values in (scores, classes, origins))
    return Detections(rows_of(clipped, order).masked_fill(~kept[..., None], 0), *numbers, kept.sum(1))


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, K, C) of (N, M, C) at indices (N, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
