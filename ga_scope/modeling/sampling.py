"""Labels from matches, and balanced samples of them."""

import torch
from torch import Tensor

from ..ops import Match

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def label_matches(match: Match, negative_below: float, positive_from: float, low_quality_from: float | None = None):
    """Anchors as positive, negative or ignored, and the box that each is matched with.

    An anchor is positive from ``positive_from`` IoU with its best box and negative below ``negative_below``,
    unless an ignore box holds it. With ``low_quality_from``, a box's own best anchor is positive too and
    matched with it, if their IoU is at least that (Ren et al. 2015, 3.1.2): no box goes without. Where several
    boxes share a best anchor, the last of them has it.

    Returns:
        labels (A,) int8 and index (A,) int64 into the boxes of the batch, -1 without overlap.
    """
    labels = torch.full_like(match.index, IGNORED, dtype=torch.int8)
    labels[(match.iou < negative_below) & ~match.ignored] = NEGATIVE
    labels[match.iou >= positive_from] = POSITIVE
    index = match.index
    if low_quality_from is None or match.gt_index.numel() == 0 or index.numel() == 0:
        return labels, index
    kept = (match.gt_index >= 0) & (match.gt_iou >= low_quality_from)
    boxes = torch.arange(len(kept), device=kept.device)
    # Boxes that do not take part write -1, which changes nothing, to their (clamped) anchor.
    owner = torch.full_like(index, -1).scatter_reduce(
        0, match.gt_index.clamp(min=0), torch.where(kept, boxes, -1), "amax", include_self=True
    )
    labels = torch.where(owner >= 0, POSITIVE, labels).to(torch.int8)
    return labels, torch.where(owner >= 0, owner, index)


def sample_labels(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Random positives and negatives of every image, at most ``count`` together.

    Args:
        labels: (N, P).
        count: per image; of these at most ``positive_fraction`` are positives, negatives fill up the rest.

    Returns:
        Flat indices into (N, P), int64: positives and negatives.
    """
    positives, negatives = [], []
    for image, row in enumerate(labels):
        positive, negative = (row == POSITIVE).nonzero()[:, 0], (row == NEGATIVE).nonzero()[:, 0]
        taken = min(len(positive), int(count * positive_fraction))
        for found, number, out in ((positive, taken, positives), (negative, count - taken, negatives)):
            chosen = torch.randperm(len(found), device=found.device)[:number]
            out.append(found[chosen] + image * labels.shape[1])
    return torch.cat(positives), torch.cat(negatives)
