"""Feature adaption (section 3.3): each location sees the area that its anchor covers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import DeformConv2d, MaskedConv2d, masked_conv2d
from ..pyramid import Pyramid

OFFSETS = ("shape", "features", "none")
TAPS = 9  # of the 3x3 convolution

# Of unguided offsets. They learn more slowly than the rest, as those of Dai et al. 2017 may: at the full rate AdamW,
# whose steps do not shrink with the gradient, moves the sum over 9 C inputs by cells in one step, to where no gradient
# comes back from.
UNGUIDED_SCALE = 0.1

# Shapes: N images, C channels, L listed locations.


class FeatureAdaption(nn.Module):
    """N_T of Eq. 3: a 3x3 deformable convolution whose offsets come from the anchor's shape, then ReLU.

    Args:
        channels: C.
        offset_groups: deformable groups.
        offsets: where they come from. ``"shape"``: a bias-free 1x1 convolution of the raw (dw, dh), which
            the operator makes on the fly. For ablations ``"features"``: a 3x3 convolution of the features, a
            deformable convolution that no anchor guides (4.3); ``"none"``: no offsets, an ordinary 3x3
            convolution (Table 4, without F.A.).
    """

    def __init__(self, channels: int, offset_groups: int = 4, offsets: str = "shape"):
        super().__init__()
        if offsets not in OFFSETS:
            raise ValueError(f"offsets: expected {', '.join(map(repr, OFFSETS))}, got {offsets!r}")
        self.offsets = offsets
        convolution = MaskedConv2d if offsets == "none" else DeformConv2d
        self.conv_adaption = convolution(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(self.conv_adaption.weight, std=0.01)
        columns = offset_groups * 2 * TAPS
        if offsets == "shape":
            self.conv_offset = nn.Conv2d(2, columns, 1, bias=False)
            nn.init.normal_(self.conv_offset.weight, std=0.1)
        elif offsets == "features":
            self.conv_offset = nn.Conv2d(channels, columns, 3, padding=1)
            # It starts as an ordinary convolution (Dai et al. 2017).
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, features: list[Tensor], shape_deltas: Tensor, locations: Tensor) -> Tensor:
        """Adapted features (L, C) at the locations.

        ``shape_deltas`` (L, 2 or more) begin with their (dw, dh), detached; only ``"shape"`` reads them.
        """
        if self.offsets == "none":
            return F.relu(self.conv_adaption(features, locations=locations))
        conv = self.conv_offset
        if self.offsets == "features":
            offsets = masked_conv2d(features, conv.weight, conv.bias, padding=1, locations=locations)
            return F.relu(self.conv_adaption(features, UNGUIDED_SCALE * offsets, locations=locations))
        return F.relu(
            self.conv_adaption(features, shape_deltas[:, :2], locations=locations, offset_weight=conv.weight.flatten(1))
        )

    def reads(self, pyramid: Pyramid, shape_deltas: Tensor, locations: Tensor) -> Tensor:
        """Which locations (N, P) of the features :meth:`forward` samples; not for offsets of ``"features"``."""
        count, device = len(locations), locations.device
        if self.offsets == "none":
            offsets = torch.zeros(count, 1, TAPS, 2, device=device)
        else:
            offsets = shape_deltas[:, :2].float() @ self.conv_offset.weight.flatten(1).float().T
            offsets = offsets.unflatten(1, (-1, TAPS, 2))
        y, x, height, width = (value[:, None, None] for value in pyramid.cells(locations))
        tap = torch.arange(TAPS, device=device)
        positions = [y + tap // 3 - 1 + offsets[..., 0], x + tap % 3 - 1 + offsets[..., 1]]
        read = torch.zeros(pyramid.images * pyramid.locations, dtype=torch.bool, device=device)
        first = locations[:, None, None] - y * width - x  # of the level's cells
        # The operator may round a position on the border of two cells to the other side.
        rows, columns = ([(p - 1e-3).floor(), (p + 1e-3).floor(), (p + 1e-3).floor() + 1] for p in positions)
        for row in rows:
            for column in columns:
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                read[(first + row * width + column)[inside].long()] = True
        return read.view(pyramid.images, pyramid.locations)
