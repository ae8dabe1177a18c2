"""Losses of the location and shape branches (section 3.4)."""

import torch
from torch import Tensor

from ..losses import sigmoid_focal_loss, smooth_l1_loss


def location_loss(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0, outside_weight: float = 0.1
) -> Tensor:
    """Focal loss of the locations; those outside all boxes' regions count ``outside_weight``, ignored ones nothing.

    The paper does not say how it is normalised. The release divides by a 200th of the locations, about the
    number of positives that an image has, and gives outside locations a tenth of the weight.

    ``logits`` and ``labels`` are (N, P); labels as :class:`LocationTargets` gives them.
    """
    weight = (labels == 1).to(torch.float32) + outside_weight * (labels == 0)
    loss = sigmoid_focal_loss(logits.float(), labels == 1, alpha, gamma)
    return (weight * loss).sum() / (labels.numel() / 200)


def shape_loss(sides: Tensor, gt_sides: Tensor, beta: float = 0.2) -> Tensor:
    """Bounded IoU loss of widths and heights (Eq. 6): the sum over both of smooth L1(1 - min(w / wg, wg / w)).

    ``sides`` and ``gt_sides`` are (L, 2), positive. Returns the mean over locations, 0 without any.
    """
    ratio = sides / gt_sides
    loss = smooth_l1_loss(1 - ratio.minimum(1 / ratio), beta)
    return loss.sum() / max(len(sides), 1)
