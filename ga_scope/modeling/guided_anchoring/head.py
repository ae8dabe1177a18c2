"""The two-phase head of Guided Anchoring.

Anchor generation is dense and cheap: 1x1 convolutions on every level. Feature adaption and prediction
follow only at a list of locations, since only 1x1 layers come after the adaption: what is computed there
is what the dense computation has there, and so are its gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import DeformConv2d
from ..pyramid import Pyramid

# Shapes: N images, C channels, P locations of an image, L listed locations.

PRIOR_PROBABILITY = 0.01  # of a location at the start, as the focal loss wants it (Lin et al. 2017, 4.1)


def _for_convolution(feature: Tensor) -> Tensor:
    """On a CPU with channels side by side: convolutions are faster so, and so are the adaption's gathers."""
    return feature.contiguous(memory_format=torch.channels_last) if feature.device.type == "cpu" else feature


class FeatureAdaption(nn.Module):
    """N_T of Eq. 3: a 3x3 deformable convolution whose offsets come from the anchor's shape, then ReLU.

    The offsets are a bias-free 1x1 convolution of the raw (dw, dh), which the operator makes on the fly.
    """

    def __init__(self, channels: int, offset_groups: int = 4):
        super().__init__()
        self.conv_offset = nn.Conv2d(2, offset_groups * 2 * 9, 1, bias=False)
        self.conv_adaption = DeformConv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(self.conv_offset.weight, std=0.1)
        nn.init.normal_(self.conv_adaption.weight, std=0.01)

    def forward(self, features: list[Tensor], shape_deltas: Tensor, locations: Tensor) -> Tensor:
        """Adapted features (L, C) at the locations; ``shape_deltas`` (L, 2) is their (dw, dh), detached."""
        adapted = self.conv_adaption(
            features, shape_deltas, locations=locations, offset_weight=self.conv_offset.weight.flatten(1)
        )
        return F.relu(adapted)


class GuidedAnchorHead(nn.Module):
    """Location and shape of the anchors, then objectness and box deltas at chosen ones.

    Args:
        in_channels: C.
        conv: an extra 3x3 convolution and ReLU before all branches. The paper's Figure 1 has none, its
            release one.
        offset_groups: deformable groups of the adaption.
    """

    def __init__(self, in_channels: int, conv: bool = False, offset_groups: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1) if conv else None
        self.location = nn.Conv2d(in_channels, 1, 1)
        self.shape = nn.Conv2d(in_channels, 2, 1)
        self.adaption = FeatureAdaption(in_channels, offset_groups)
        self.objectness = nn.Linear(in_channels, 1)
        self.deltas = nn.Linear(in_channels, 4)
        for layer in (self.conv, self.location, self.shape, self.objectness, self.deltas):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.location.bias, torch.tensor(PRIOR_PROBABILITY).logit().item())

    def generate(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Phase one, at every location.

        Returns:
            the features that phase two reads (after ``conv``), location logits (N, P), shape deltas (N, P, 2).
        """
        if self.conv is not None:
            features = [F.relu(self.conv(_for_convolution(f)), inplace=True) for f in features]
        # One convolution for both branches reads the features once.
        weight = torch.cat([self.location.weight, self.shape.weight])
        bias = torch.cat([self.location.bias, self.shape.bias])
        both = pyramid.flatten([F.conv2d(f, weight, bias) for f in features])
        return features, both[..., 0], both[..., 1:]

    def predict(self, features: list[Tensor], shape_deltas: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
        """Phase two, at listed locations: objectness logits (L,) and box deltas (L, 4).

        ``shape_deltas`` (L, 2) are those of the locations; no gradient flows into them (section 3.3).
        """
        adapted = self.adaption(features, shape_deltas.detach(), locations)
        return self.objectness(adapted).squeeze(1), self.deltas(adapted)
