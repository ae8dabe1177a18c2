"""Anchors of a location: of the shape that is predicted for it (section 3.2), or of fixed shapes (ablation)."""

import math

import torch
from torch import Tensor

from ..pyramid import Pyramid

# exp() is bounded to a factor of 1000 / 8 either way: sides from about 0 to 1000 strides.
LOG_CLAMP = math.log(1000 / 8)

# Shapes: N images, P locations of an image, L listed locations, K anchors per location. Anchor k of location
# i has index i * K + k, in everything per anchor.


class AnchorShapes:
    """w = sigma * s * exp(std * dw), h = sigma * s * exp(std * dh) (Eq. 2), s the level's stride.

    Args:
        sigma: 8 in the paper.
        std: the paper has none (1), its release 0.14.
        centers: also predict the centre, (dx, dy) in units of sigma * s from the location, against the
            alignment rule (Table 6).
    """

    per_location = 1  # K

    def __init__(self, sigma: float = 8.0, std: float = 1.0, centers: bool = False):
        self.sigma = sigma
        self.std = std
        self.centers = centers

    @property
    def columns(self) -> int:
        """Numbers that are predicted at a location: (dw, dh) and, with ``centers``, (dx, dy)."""
        return 4 if self.centers else 2

    def decode(self, pyramid: Pyramid, deltas: Tensor, locations: Tensor | None = None) -> Tensor:
        """Anchors (x1, y1, x2, y2) of the locations.

        Args:
            deltas: (N, P, columns) of every location; or (L, columns) with ``locations`` (L,).

        Returns:
            (N, P, 4) or (L, 4), in pixels, not clipped. Differentiable.
        """
        centers = pyramid.centers(deltas.device)
        base = pyramid.per_level(pyramid.strides, deltas.device)[:, None] * self.sigma
        if locations is not None:
            place = locations % pyramid.locations
            centers, base = centers[place], base[place]
        deltas = deltas.float()
        if self.centers:
            centers = centers + base * deltas[..., 2:]
        half = 0.5 * base * torch.exp((self.std * deltas[..., :2]).clamp(-LOG_CLAMP, LOG_CLAMP))
        return torch.cat([centers - half, centers + half], -1)


class FixedShapes:
    """The same K widths and heights at every location of a level: sliding-window anchors (Table 4, without S.).

    Args:
        sides: (levels, K, 2) in pixels.
    """

    columns = 0

    def __init__(self, sides):
        self.level_sides = torch.as_tensor(sides, dtype=torch.float32)

    @classmethod
    def of(cls, sizes, ratios) -> "FixedShapes":
        """From square roots of areas and ratios height / width per level, as ``MODEL.ANCHOR_GENERATOR`` has them."""
        return cls([[(s * r**-0.5, s * r**0.5) for s in of_level for r in rs] for of_level, rs in zip(sizes, ratios)])

    @property
    def per_location(self) -> int:
        return self.level_sides.shape[1]

    def decode(self, pyramid: Pyramid, deltas: Tensor, locations: Tensor | None = None) -> Tensor:
        """As :meth:`AnchorShapes.decode`: (N, P * K, 4) or (L * K, 4); of ``deltas``, (..., 0), the shape counts."""
        centers = pyramid.centers(deltas.device)[:, None]
        levels = pyramid.per_level(range(len(pyramid.strides)), deltas.device, torch.int64)
        if locations is not None:
            place = locations % pyramid.locations
            centers, levels = centers[place], levels[place]
        self.level_sides = self.level_sides.to(deltas.device)  # once: copying them waits for a GPU
        half = 0.5 * self.level_sides[levels]
        anchors = torch.cat([centers - half, centers + half], -1).flatten(0, 1)
        return anchors if locations is not None else anchors.expand(deltas.shape[0], -1, -1)
