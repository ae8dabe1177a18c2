"""Labels from matches, and balanced samples of them."""

import torch
from torch import Tensor

from ..ops import Match

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def label_matches(
    match: Match,
    negative_below: float,
    positive_from: float,
    low_quality_from: float | None = None,
    *,
    keep_best_box: bool = False,
) -> tuple[Tensor, Tensor]:
    """Anchors as positive, negative or ignored, and the box that each is matched with.

    An anchor is positive from ``positive_from`` IoU with its best box and negative below ``negative_below``,
    unless an ignore box holds it. With ``low_quality_from``, the anchors that no other beats for a box (``best_for``:
    all that tie) are positive too, if their IoU with it is at least that, so that no box goes without (Ren et al.
    2015, 3.1.2); in an ignore box, too: it says nothing about an object that is annotated. The match must have been
    made with the same ``low_quality_from``, since it remembers one box per anchor. (A box that overlaps no anchor has
    no best one. In detectron2 all anchors are, with an IoU of 0.)

    Args:
        keep_best_box: what such an anchor is matched with: by default the box that it is best for, the last of them,
            as in MMDetection and the release of Guided Anchoring; True: the box that it overlaps most, as in
            detectron2.

    Returns:
        labels (A,) int8 and index (A,) int64 into the boxes of the batch, -1 without overlap.
    """
    labels = torch.full_like(match.index, IGNORED, dtype=torch.int8)
    labels[(match.iou < negative_below) & ~match.ignored] = NEGATIVE
    labels[match.iou >= positive_from] = POSITIVE
    if low_quality_from is None or match.gt_iou.numel() == 0:
        return labels, match.index
    owner = match.best_for
    kept = (owner >= 0) & (match.gt_iou[owner.clamp(min=0)] >= low_quality_from)
    labels = torch.where(kept, POSITIVE, labels).to(torch.int8)
    return labels, match.index if keep_best_box else torch.where(kept, owner, match.index)


def sample_labels(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Random positives and negatives of every image, at most ``count`` together.

    Waits for the device twice, whatever the number of images: the two results are as long as there are samples.

    Args:
        labels: (N, P).
        count: per image; of these at most ``positive_fraction`` are positives, negatives fill up the rest.

    Returns:
        Flat indices into (N, P), int64: positives and negatives.
    """
    # The first in the order of random keys are a random subset; in 62 bits no two keys are alike.
    keys = torch.randint(2**62, labels.shape, device=labels.device)
    first = torch.arange(len(labels), device=labels.device)[:, None] * labels.shape[1]

    def best(kind, number):
        top = keys.masked_fill(labels != kind, -1).topk(min(number, labels.shape[1]), 1)
        return first + top.indices, top.values >= 0

    positives, are_positive = best(POSITIVE, int(count * positive_fraction))
    negatives, are_negative = best(NEGATIVE, count)
    rest = count - are_positive.sum(1, keepdim=True)
    are_negative &= torch.arange(negatives.shape[1], device=labels.device) < rest
    return positives[are_positive], negatives[are_negative]
