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

    def grow(self, locations: Tensor, reach: int) -> Tensor:
        """The flat indices within ``reach`` cells of any of the locations, on their level: unique, ascending.

        What a convolution of size 2 * reach + 1 over the locations (L,) reads, without the padding.
        """
        device = locations.device
        image, place = locations // self.locations, locations % self.locations
        firsts = torch.tensor([0, *self.counts[:-1]]).cumsum(0)
        level = torch.searchsorted(firsts.to(device), place, right=True) - 1
        first, height, width = (
            values.to(device)[level] for values in (firsts, *torch.tensor(self.sizes).view(-1, 2).unbind(1))
        )
        y, x = (place - first) // width, (place - first) % width
        step = torch.arange(-reach, reach + 1, device=device)
        y, x = y[:, None, None] + step[:, None], x[:, None, None] + step
        inside = (y >= 0) & (y < height[:, None, None]) & (x >= 0) & (x < width[:, None, None])
        start = (image * self.locations + first)[:, None, None]
        return (start + y * width[:, None, None] + x)[inside].unique()

    def scatter(self, rows: Tensor, locations: Tensor) -> list[Tensor]:
        """Rows (L, C) at unique flat indices as maps (N, C, H_l, W_l), zero elsewhere; channels last."""
        flat = rows.new_zeros(self.images * self.locations, rows.shape[1]).index_copy(0, locations, rows)
        return [part.permute(0, 3, 1, 2) for part in self.split(flat.view(self.images, self.locations, -1))]
