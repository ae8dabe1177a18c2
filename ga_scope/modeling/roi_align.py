"""ROIAlign (He et al. 2017): torchvision's, but for the gradient on a CPU, which took a third of a training step."""

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from .. import ops  # noqa: F401  (loads ga_scope::roi_align_backward)


def roi_align(feature: Tensor, boxes: Tensor, images: Tensor, size, scale: float, sampling_ratio: int) -> Tensor:
    """(R, C, size, size) of boxes, without the half-pixel shift (``aligned=True``).

    Args:
        feature: (N, C, H, W), float32 or float64.
        boxes: (R, 4) in pixels of the image, of the feature's dtype; they get no gradient, as in torchvision.
        images: (R,) int64.
        size: of the pooled maps, one number or two.
        scale: from pixels to the feature's cells.
        sampling_ratio: samples of a bin along an axis; 0: as many as there are cells.
    """
    if feature.is_cpu and feature.requires_grad and torch.is_grad_enabled():
        return _RoIAlign.apply(feature, boxes, images, size, scale, sampling_ratio)
    return _forward(feature, boxes, images, size, scale, sampling_ratio)


def _forward(feature, boxes, images, size, scale, sampling_ratio):
    rois = torch.cat([images[:, None].to(boxes.dtype), boxes], 1)
    return torchvision_roi_align(feature, rois, size, scale, sampling_ratio, aligned=True)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feature, boxes, images, size, scale, sampling_ratio):
        ctx.save_for_backward(boxes, images)
        ctx.shape, ctx.scale, ctx.sampling_ratio = feature.shape, scale, sampling_ratio
        return _forward(feature, boxes, images, size, scale, sampling_ratio)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        boxes, images = ctx.saved_tensors
        count, _, height, width = ctx.shape
        grad = torch.ops.ga_scope.roi_align_backward(
            grad, boxes, images, ctx.scale, ctx.sampling_ratio, count, height, width
        )
        return grad, None, None, None, None, None


@torch.library.register_fake("ga_scope::roi_align_backward")
def _(grad_output, boxes, images, scale, sampling_ratio, num_images, height, width):
    return grad_output.new_empty(num_images, grad_output.shape[1], height, width)
