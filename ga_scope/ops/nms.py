"""Greedy non-maximum suppression whose result has a fixed size."""

import torch
from torch import Tensor

from . import _arguments

# Shapes: B batch entries, K boxes of each.


def nms_mask(
    boxes: Tensor, iou_threshold: float, *, groups: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Which boxes survive non-maximum suppression, the best first having the first say.

    A box that survives suppresses the later boxes of its group whose IoU with it is above the threshold. Unlike
    :func:`torchvision.ops.nms` this gives a mask, not a list: its size does not depend on the data and nothing waits
    for the device, so that it can be captured in a CUDA graph; and a batch is one call.

    Args:
        boxes: ``(B, K, 4)`` as (x1, y1, x2, y2), float32 or float64, in descending order of their scores.
        iou_threshold: in [0, 1].
        groups: ``(B, K)`` int64, classes or levels; boxes of different groups leave each other alone.
        valid: ``(B, K)`` bool: the others neither survive nor suppress.

    Returns:
        ``(B, K)`` bool.

    Raises:
        RuntimeError: naming the argument, what was expected and what came. On CUDA also above K = 65,536.
    """
    _arguments.check_tensor(boxes, "boxes")
    return torch.ops.ga_scope.nms_mask(boxes.detach(), groups, valid, iou_threshold)


_arguments.loop_under_vmap("nms_mask")


@torch.library.register_fake("ga_scope::nms_mask")
def _(boxes, groups, valid, iou_threshold):
    _arguments.check_dim("nms_mask", "boxes", boxes, 3)
    _arguments.check_shape("nms_mask", "boxes", boxes, [*boxes.shape[:2], 4])
    for name, flags in (("groups", groups), ("valid", valid)):
        if flags is not None:
            _arguments.check_shape("nms_mask", name, flags, boxes.shape[:2])
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)
