"""Boxes as shifts and log-scales of reference boxes (Girshick et al. 2014), scaled by weights."""

import math

import torch
from torch import Tensor

# exp() of a size delta is bounded so that a wild prediction stays finite: 1000 / 16 times the reference.
SCALE_CLAMP = math.log(1000 / 16)


def center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (..., 2) and sides (..., 2) of boxes (..., 4)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


class BoxCoder:
    """delta = weights * ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)).

    ``weights`` are the inverse standard deviations of the targets, as in detectron2's ``BBOX_REG_WEIGHTS``.
    """

    def __init__(self, weights=(1.0, 1.0, 1.0, 1.0)):
        self.weights = tuple(weights)

    def encode(self, references: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (..., 4) that take the references to the boxes. Sizes must be positive."""
        center, size = center_size(references)
        target_center, target_size = center_size(boxes)
        deltas = torch.cat([(target_center - center) / size, (target_size / size).log()], -1)
        return self._scaled(deltas, self.weights)

    def decode(self, references: Tensor, deltas: Tensor) -> Tensor:
        """The boxes (..., 4) that the deltas make of the references."""
        center, size = center_size(references)
        deltas = self._scaled(deltas, [1 / weight for weight in self.weights])
        center = center + deltas[..., :2] * size
        size = size * deltas[..., 2:].clamp(max=SCALE_CLAMP).exp()
        return torch.cat([center - 0.5 * size, center + 0.5 * size], -1)

    def _scaled(self, deltas, factors):
        # Number by number: a tensor of them would have to be copied to a GPU, which waits for it.
        if all(factor == 1 for factor in factors):
            return deltas
        return torch.stack([delta * factor for delta, factor in zip(deltas.unbind(-1), factors)], -1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut at the border of an image of (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (N, K, 4) cut at the borders of N images of (height, width), (N, 2) on the boxes' device."""
    return boxes.clamp(min=0).minimum(sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None])
