"""The locations of a batch of feature pyramids: one flat index space for every per-location tensor.

Image n, level l, cell (y, x) has index ``n * P + first_l + y * W_l + x`` (see :mod:`ga_scope.ops`), so a
tensor over all locations is ``(N, P, ...)`` and each image's part of it is contiguous.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    def around(self, locations: Tensor, reach: int) -> Tensor:
        """The flat indices within ``reach`` cells of each of the locations (L,), on their level: (L, (2 reach + 1)^2).

        What a convolution of size 2 * reach + 1 reads at them. Where that is padding, the location itself stands in.
        """
        y, x, height, width = (value[:, None] for value in self.cells(locations))
        step = torch.arange(-reach, reach + 1, device=locations.device)
        dy, dx = step.repeat_interleave(2 * reach + 1), step.repeat(2 * reach + 1)
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        return torch.where(inside, locations[:, None] + dy * width + dx, locations[:, None])

    def cells(self, locations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y and x of the locations (L,) on their levels, and the levels' heights and widths; (L,) int64 each."""
        device, place = locations.device, locations % self.locations
        firsts = [sum(self.counts[:level]) for level in range(len(self.sizes))]
        heights, widths = zip(*self.sizes)
        first, height, width = (
            self.per_level(values, device, torch.int64)[place] for values in (firsts, heights, widths)
        )
        cell = place - first
        return cell // width, cell % width, height, width

    def grow(self, locations: Tensor, reach: int) -> Tensor:
        """The locations of :meth:`around`, each once: flat indices, ascending."""
        return self.around(locations, reach).unique()

    def mask(self, locations: Tensor) -> Tensor:
        """(N, P) bool: which locations are listed."""
        flat = torch.zeros(self.images * self.locations, dtype=torch.bool, device=locations.device)
        return flat.index_fill_(0, locations, True).view(self.images, self.locations)

    def dilate(self, mask: Tensor) -> Tensor:
        """The locations (N, P) within a cell of those of the mask: what a 3x3 convolution reads at them."""
        parts = [F.max_pool2d(part.float(), 3, 1, 1) for part in self.split(mask)]
        return torch.cat([part.flatten(1) for part in parts], 1) > 0

    def scatter(self, rows: Tensor, locations: Tensor) -> list[Tensor]:
        """Rows (L, C) at unique flat indices as maps (N, C, H_l, W_l), zero elsewhere; channels last."""
        flat = rows.new_zeros(self.images * self.locations, rows.shape[1]).index_copy(0, locations, rows)
        return [part.permute(0, 3, 1, 2) for part in self.split(flat.view(self.images, self.locations, -1))]
