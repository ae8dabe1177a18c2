"""Losses of the location and shape branches (section 3.4)."""

import torch
from torch import Tensor

from ..box_coding import center_size
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
    """Bounded IoU loss (L,) of widths and heights (Eq. 6): the sum over both of smooth L1(1 - min(w / wg, wg / w)).

    ``sides`` and ``gt_sides`` are (L, 2), positive.
    """
    ratio = sides / gt_sides
    return smooth_l1_loss(1 - ratio.minimum(1 / ratio), beta).sum(1)


def center_loss(centers: Tensor, gt_boxes: Tensor, beta: float = 0.2) -> Tensor:
    """Bounded IoU loss (L,) of centres: what a shift of dx leaves of the overlap, (wg - 2 |dx|) / (wg + 2 |dx|).

    Tychsen-Smith and Petersson 2018, Eq. 6; beside :func:`shape_loss` where centres are predicted (Table 6). The
    release adds it where they are not, for the locations' own points: constants, without a gradient.
    ``centers`` (L, 2), ``gt_boxes`` (L, 4).
    """
    gt_centers, gt_sides = center_size(gt_boxes)
    shift = 2 * (centers - gt_centers).abs()
    return smooth_l1_loss(1 - ((gt_sides - shift) / (gt_sides + shift)).clamp(min=0), beta).sum(1)
