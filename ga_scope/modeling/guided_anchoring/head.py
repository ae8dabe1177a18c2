"""The two-phase head of Guided Anchoring.

Anchor generation is dense and cheap: 1x1 convolutions on every level. Feature adaption and prediction
follow only at a list of locations, since only 1x1 layers come after the adaption: what is computed there
is what the dense computation has there, and so are its gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import initialise
from ..pyramid import Pyramid
from .adaption import FeatureAdaption

# Shapes: N images, C channels, P locations of an image, L listed locations, K anchors per location.

PRIOR_PROBABILITY = 0.01  # of a location at the start, as the focal loss wants it (Lin et al. 2017, 4.1)
PRIOR_BIAS = torch.tensor(PRIOR_PROBABILITY).logit().item()


def _for_convolution(feature: Tensor) -> Tensor:
    """On a CPU with channels side by side: convolutions are faster so, and so are the adaption's gathers."""
    return feature.contiguous(memory_format=torch.channels_last) if feature.device.type == "cpu" else feature


def location_branch(channels: int) -> nn.Conv2d:
    """N_L of section 3.1."""
    branch = nn.Conv2d(channels, 1, 1)
    initialise(branch)
    nn.init.constant_(branch.bias, PRIOR_BIAS)
    return branch


def shape_branch(channels: int, columns: int) -> nn.Conv2d:
    """N_S of section 3.2; ``columns`` as :attr:`AnchorShapes.columns`."""
    branch = nn.Conv2d(channels, columns, 1)
    initialise(branch)
    return branch


class GuidedAnchorHead(nn.Module):
    """Location and shape of the anchors, then objectness and box deltas at chosen ones.

    Args:
        in_channels: C.
        conv: an extra 3x3 convolution and ReLU before all branches. The paper's Figure 1 has none, its
            release one.
        offset_groups, offsets: of the :class:`FeatureAdaption`.
        location: without, there is no location branch (Table 4, without L.).
        shape_columns: :attr:`AnchorShapes.columns`; 0: no shape branch (Table 4, without S.).
        anchors_per_location: K, 1 unless the shapes are fixed.
    """

    def __init__(
        self,
        in_channels: int,
        conv: bool = False,
        offset_groups: int = 4,
        *,
        offsets: str = "shape",
        location: bool = True,
        shape_columns: int = 2,
        anchors_per_location: int = 1,
    ):
        super().__init__()
        if offsets == "shape" and not shape_columns:
            raise ValueError("offsets: expected 'features' or 'none' without a shape branch, got 'shape'")
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1) if conv else None
        self.location = location_branch(in_channels) if location else None
        self.shape = shape_branch(in_channels, shape_columns) if shape_columns else None
        self.adaption = FeatureAdaption(in_channels, offset_groups, offsets)
        self.objectness = nn.Linear(in_channels, anchors_per_location)
        self.deltas = nn.Linear(in_channels, 4 * anchors_per_location)
        initialise(self.conv, self.objectness, self.deltas)

    def generate(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Phase one, at every location.

        Returns:
            the features that phase two reads (after ``conv``), location logits (N, P) or None, shape deltas
            (N, P, columns).
        """
        if self.conv is not None:
            features = [F.relu(self.conv(_for_convolution(f)), inplace=True) for f in features]
        branches = [branch for branch in (self.location, self.shape) if branch is not None]
        if not branches:
            return features, None, features[0].new_zeros(pyramid.images, pyramid.locations, 0)
        # One convolution for both branches reads the features once.
        weight, bias = (torch.cat([getattr(b, name) for b in branches]) for name in ("weight", "bias"))
        both = pyramid.flatten([F.conv2d(f, weight, bias) for f in features])
        if self.location is None:
            return features, None, both
        return features, both[..., 0], both[..., 1:]

    def predict(self, features: list[Tensor], shape_deltas: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
        """Phase two, at listed locations: objectness logits (L * K,) and box deltas (L * K, 4).

        ``shape_deltas`` (L, columns) are those of the locations; no gradient flows into them (section 3.3).
        """
        adapted = self.adaption(features, shape_deltas.detach(), locations)
        return self.objectness(adapted).flatten(), self.deltas(adapted).view(-1, 4)
