"""Anchors from predicted shapes (section 3.2)."""

import math

import torch
from torch import Tensor

from ..pyramid import Pyramid

# exp() is bounded to a factor of 1000 / 8 either way: sides from about 0 to 1000 strides.
LOG_CLAMP = math.log(1000 / 8)


class AnchorShapes:
    """w = sigma * s * exp(std * dw), h = sigma * s * exp(std * dh) (Eq. 2), s the level's stride.

    The paper has ``sigma`` 8 and no ``std`` (1); its release 0.14.
    """

    def __init__(self, sigma: float = 8.0, std: float = 1.0):
        self.sigma = sigma
        self.std = std

    def decode(self, pyramid: Pyramid, deltas: Tensor, locations: Tensor | None = None) -> Tensor:
        """Anchors (x1, y1, x2, y2) centred on their locations.

        Args:
            deltas: (N, P, 2), (dw, dh) of every location; or (L, 2) with ``locations`` (L,).

        Returns:
            (N, P, 4) or (L, 4), in pixels, not clipped.
        """
        centers = pyramid.centers(deltas.device)
        base = pyramid.per_level(pyramid.strides, deltas.device) * self.sigma
        if locations is not None:
            place = locations % pyramid.locations
            centers, base = centers[place], base[place]
        half = 0.5 * base[:, None] * torch.exp((self.std * deltas.float()).clamp(-LOG_CLAMP, LOG_CLAMP))
        return torch.cat([centers - half, centers + half], -1)

    def sides(self, pyramid: Pyramid, deltas: Tensor, locations: Tensor) -> Tensor:
        """Widths and heights (L, 2) alone, differentiable."""
        base = pyramid.per_level(pyramid.strides, deltas.device)[locations % pyramid.locations] * self.sigma
        return base[:, None] * torch.exp((self.std * deltas.float()).clamp(-LOG_CLAMP, LOG_CLAMP))
