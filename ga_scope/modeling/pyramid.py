"""The locations of a batch of feature pyramids: one flat index space for every per-location tensor.

Image n, level l, cell (y, x) has index ``n * P + first_l + y * W_l + x`` (see :mod:`ga_scope.ops`), so a
tensor over all locations is ``(N, P, ...)`` and each image's part of it is contiguous.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pyramid:
    """Sizes and strides of a batch's feature maps.

    Attributes:
        images: N.
        sizes: (H, W) of every level.
        strides: of every level, in pixels.
        cell_offset: cell (y, x) of stride s stands for the point ((x + offset) s, (y + offset) s). The
            paper has 1/2 (section 3.1), its release 0.
    """

    images: int
    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    cell_offset: float = 0.5

    @classmethod
    def of(cls, features: list[Tensor], strides, cell_offset: float = 0.5) -> "Pyramid":
        if len(features) != len(strides):
            raise ValueError(f"features: expected {len(strides)} levels, one per stride, got {len(features)}")
        sizes = tuple((f.shape[2], f.shape[3]) for f in features)
        return cls(features[0].shape[0], sizes, tuple(strides), cell_offset)

    @property
    def counts(self) -> list[int]:
        """Locations of one image on every level."""
        return [height * width for height, width in self.sizes]

    @property
    def locations(self) -> int:
        """P: locations of one image."""
        return sum(self.counts)

    def centers(self, device) -> Tensor:
        """The points that an image's locations stand for: (P, 2), x and y."""
        points = []
        for (height, width), stride in zip(self.sizes, self.strides):
            y = (torch.arange(height, device=device) + self.cell_offset) * stride
            x = (torch.arange(width, device=device) + self.cell_offset) * stride
            points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], 2).flatten(0, 1))
        return torch.cat(points)

    def per_level(self, values, device, dtype=torch.float32) -> Tensor:
        """A value per level, repeated for each of its locations: (P,)."""
        return torch.cat([torch.full((n,), v, dtype=dtype, device=device) for n, v in zip(self.counts, values)])

    def flatten(self, maps: list[Tensor]) -> Tensor:
        """Maps (N, C, H_l, W_l) as one tensor (N, P, C)."""
        return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The inverse for a tensor (N, P) or (N, P, C): (N, H_l, W_l) or (N, H_l, W_l, C) per level."""
        parts = flat.split(self.counts, 1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.sizes)]
