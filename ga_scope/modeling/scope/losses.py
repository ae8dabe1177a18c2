"""Losses of the scope head (section 3.2), per positive location."""

from torch import Tensor


def bin_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the bins, the mean over the four sides: (L,).

    Args:
        logits: (L, 4, B). targets: (L, 4, B), the weights of the bins, which add up to 1 per side.
    """
    return -(targets * logits.log_softmax(-1)).sum(-1).mean(-1)


def distance_iou(pred: Tensor, gt: Tensor) -> Tensor:
    """IoU (L,) of boxes given by distances (L, 4) > 0 from one location to left, top, right, bottom.

    Both boxes hold the location, so they always overlap (Yu et al. 2016, *UnitBox*, Algorithm 1).
    """
    intersection = _area(pred.minimum(gt))
    return intersection / (_area(pred) + _area(gt) - intersection)


def box_loss(pred: Tensor, gt: Tensor, kind: str = "iou") -> Tensor:
    """Loss (L,) of boxes as in :func:`distance_iou`.

    ``"iou"`` is -log IoU (the paper; UnitBox); ``"giou"`` 1 - GIoU (Rezatofighi et al. 2019); ``"diou"`` 1 - DIoU
    (Zheng et al. 2020).
    """
    iou = distance_iou(pred, gt)
    if kind == "iou":
        return -iou.log()
    hull = pred.maximum(gt)
    if kind == "giou":
        intersection = _area(pred.minimum(gt))
        union = _area(pred) + _area(gt) - intersection
        return 1 - iou + (_area(hull) - union) / _area(hull)
    if kind == "diou":
        diagonal = (hull[:, :2] + hull[:, 2:]).square().sum(-1)
        apart = 0.5 * ((pred[:, 2:] - pred[:, :2]) - (gt[:, 2:] - gt[:, :2]))
        return 1 - iou + apart.square().sum(-1) / diagonal
    raise ValueError(f"kind: expected 'iou', 'giou' or 'diou', got {kind!r}")


def _area(distances):
    return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])
