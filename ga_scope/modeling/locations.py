"""The locations that something is computed at, and how they lie on images and levels.

What follows the choice of locations is one code: it reads rows, one for every listed location, and arranges them as
``(N, R)`` per level. For *all* locations and for a *budget* of them R follows from the maps' sizes, nothing waits for
the device, and the whole can be captured in a CUDA graph, compiled or exported. For *listed* locations the data decides
R: nothing is computed for the others.
"""

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .pyramid import Pyramid

# Shapes: N images, P locations of an image, L listed locations, R of an image on a level.


class LocationList:
    """Locations in ascending order, repeats allowed; made by :meth:`all`, :meth:`budget` or :meth:`listed`.

    Attributes:
        indices: (L,) flat indices, int64.
        slots: per level (N, R): which rows of ``indices`` are each image's.
        present: per level (N, R) bool: the others do not count; None where all do.
        fixed: whether R follows from the maps' sizes. Then row ``n * sum(R) + i`` is the i-th of image n.
    """

    def __init__(self, pyramid: Pyramid, indices: Tensor, slots: list[Tensor], present, fixed: bool):
        self.pyramid, self.indices, self.slots, self.present, self.fixed = pyramid, indices, slots, present, fixed

    @classmethod
    def all(cls, pyramid: Pyramid, device, active: Tensor | None = None) -> "LocationList":
        """``active`` (N, P): which of them count; by default all."""
        indices = torch.arange(pyramid.images * pyramid.locations, device=device)
        slots = list(indices.view(pyramid.images, -1).split(pyramid.counts, 1))
        present = None if active is None else list(active.split(pyramid.counts, 1))
        return cls(pyramid, indices, slots, present, True)

    @classmethod
    def budget(cls, pyramid: Pyramid, chosen: Tensor, active: Tensor, counts: list[int]) -> "LocationList":
        """``chosen`` (N, sum of ``counts``) flat indices, ``counts[l]`` of level l; which of them are ``active``."""
        rows = torch.arange(chosen.numel(), device=chosen.device).view_as(chosen)
        return cls(pyramid, chosen.flatten(), list(rows.split(counts, 1)), list(active.split(counts, 1)), True)

    @classmethod
    def listed(cls, pyramid: Pyramid, indices: Tensor) -> "LocationList":
        """``indices`` (L,) ascending. Waits for the device."""
        levels = len(pyramid.counts)
        firsts = torch.tensor([0, *pyramid.counts[:-1]], device=indices.device).cumsum(0)
        images = torch.arange(pyramid.images, device=indices.device)[:, None] * pyramid.locations
        borders = torch.cat([(images + firsts).flatten(), images.new_tensor([pyramid.images * pyramid.locations])])
        starts = torch.searchsorted(indices, borders)
        counts = starts.diff().view(-1, levels)
        starts = starts[:-1].view(-1, levels)
        slots, present = [], []
        for level, room in enumerate(counts.amax(0).tolist()):
            place = torch.arange(room, device=indices.device)
            present.append(place < counts[:, level, None])
            slots.append(torch.where(present[-1], starts[:, level, None] + place, 0))
        return cls(pyramid, indices, slots, present, False)

    @property
    def images(self) -> Tensor:
        """(L,) the image of every row."""
        return self.indices // self.pyramid.locations

    @property
    def places(self) -> Tensor:
        """(L,) the location of its image of every row."""
        return self.indices % self.pyramid.locations

    def count(self) -> Tensor:
        """(N,) how many of every image there are."""
        if self.present is None:
            return self.indices.new_full((self.pyramid.images,), self.indices.shape[0] // self.pyramid.images)
        return torch.stack([present.sum(1) for present in self.present]).sum(0)

    def repeat(self, times: int) -> "LocationList":
        """Every row so many times: from locations to the anchors on them."""
        if times == 1:
            return self
        steps = torch.arange(times, device=self.indices.device)
        slots = [(slot[..., None] * times + steps).flatten(1) for slot in self.slots]
        present = self.present and [present.repeat_interleave(times, 1) for present in self.present]
        indices = self.indices[:, None].expand(-1, times).flatten()
        return LocationList(self.pyramid, indices, slots, present, self.fixed)

    def per_level(self, rows: Tensor, absent: float) -> list[Tensor]:
        """Numbers (L,) as (N, R) per level; ``absent`` where there is no row."""
        if self.fixed:
            parts = rows.view(self.pyramid.images, -1).split([slot.shape[1] for slot in self.slots], 1)
        else:
            parts = [rows[slot] for slot in self.slots]
        if self.present is None:
            return list(parts)
        return [part.masked_fill(~present, absent) for part, present in zip(parts, self.present)]

    def grown(self, reach: int) -> Tensor:
        """The flat indices of the locations within ``reach`` cells of those listed; with a budget, with repeats."""
        if not self.fixed:
            return self.pyramid.grow(self.indices, reach)
        everything = self.pyramid.images * self.pyramid.locations
        # Where it is less, without the repeats, to take all; or may be, in a program for any size.
        if not statically_known_true((2 * reach + 1) ** 2 * self.indices.shape[0] < everything):
            return torch.arange(everything, device=self.indices.device)
        return self.pyramid.around(self.indices, reach).flatten()

    def those(self, rows: Tensor, wanted: Tensor) -> tuple["LocationList", Tensor]:
        """The locations of which something is to be computed for rows (N, M), of these only the ``wanted`` (N, M).

        Returns:
            the locations, and where among them each of the (N, M) is. With a budget these are all: how many are wanted
            would have to be asked of the device.
        """
        if self.fixed:
            return self, rows
        first = rows.new_zeros(min(len(self.indices), 1))  # what is not wanted must be somewhere
        chosen, place = torch.cat([first, rows[wanted]]).unique(return_inverse=True)
        places = torch.zeros_like(rows).masked_scatter(wanted, place[len(first) :])
        return LocationList(self.pyramid, self.indices[chosen], [], None, False), places
