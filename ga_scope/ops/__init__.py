"""Operators: sparse and deformable convolution, and matching without matrices. Needs torch alone.

A *pyramid* is a list of maps, each ``(N, C, H_l, W_l)``; a single map is a pyramid of one. A *location*
is a flat int64 index into all positions of a batch, image by image and level by level::

    n * P + first_l + y * W_l + x,    P = sum(H_l * W_l),    first_l = locations on the levels before l

which for a single map is ``(n * H + y) * W + x``.

On a GPU the results are those of the CPU up to rounding, and:

- Convolutions in bfloat16 and float16, and in float32 where ``torch.backends.cudnn`` allows tf32 (as by default), run
  as one kernel on the tensor cores if the channels of a group (and of an offset group) are a multiple of 64 (float32:
  32); interpolated samples are rounded to the dtype before they are multiplied. Everything else, every backward among
  it, goes through columns of bounded size and torch's matrix products, which follow ``torch.backends.cuda.matmul``.
  Channels_last inputs save a copy, and a channels_last weight saves one in every call.
- Nothing waits for the device, so calls can be captured in CUDA graphs. A location out of range therefore cannot be
  an exception: it stops the device with a message, as torch's own indexing does.
- The convolutions' backward is deterministic where torch.use_deterministic_algorithms() asks for it.
- A pyramid has at most 8 levels.
"""

from . import _library  # noqa: F401  (loads the operators; must come first)
from ._arguments import refuse_torchscript
from .deform_conv import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, box_offsets, deform_conv2d
from .masked_conv import MaskedConv2d, masked_conv2d
from .matching import Match, iou_match, location_targets, viou_match
from .nms import nms_mask

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "MaskedConv2d",
    "Match",
    "ModulatedDeformConv2dPack",
    "box_offsets",
    "deform_conv2d",
    "iou_match",
    "location_targets",
    "masked_conv2d",
    "nms_mask",
    "viou_match",
]

for _function in (deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match):
    _function.__prepare_scriptable__ = refuse_torchscript(_function.__name__)
