"""Operators: sparse and deformable convolution, and matching without matrices. Needs torch alone.

A *pyramid* is a list of maps, each ``(N, C, H_l, W_l)``; a single map is a pyramid of one. A *location*
is a flat int64 index into all positions of a batch, image by image and level by level::

    n * P + first_l + y * W_l + x,    P = sum(H_l * W_l),    first_l = locations on the levels before l

which for a single map is ``(n * H + y) * W + x``.
"""

from . import _library  # noqa: F401  (loads the operators; must come first)
from .deform_conv import DeformConv2d, deform_conv2d
from .masked_conv import MaskedConv2d, masked_conv2d
from .matching import Match, iou_match, location_targets, viou_match

__all__ = [
    "DeformConv2d",
    "MaskedConv2d",
    "Match",
    "deform_conv2d",
    "iou_match",
    "location_targets",
    "masked_conv2d",
    "viou_match",
]
