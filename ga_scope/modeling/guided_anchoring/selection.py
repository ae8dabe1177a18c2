"""Which locations are active (section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..locations import LocationList
from ..pyramid import Pyramid


@dataclass(frozen=True)
class LocationSelection:
    """Locations with probability of at least ``threshold`` (epsilon_L), at most ``topk`` per image and level.

    ``topk`` 0 means no budget. With ``threshold`` 0 and a budget every image has the same number of active
    locations: bounded latency, static shapes. No active location is a valid outcome: no anchors.
    """

    threshold: float = 0.01
    topk: int = 0

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected a probability, got {self.threshold}")
        if self.topk < 0:
            raise ValueError(f"topk: expected 0 (no budget) or a positive number, got {self.topk}")

    def active(self, pyramid: Pyramid, probability: Tensor) -> Tensor:
        """The active locations, (A,) flat indices, ascending, from probabilities (N, P). Waits for the device."""
        probability = probability.detach()
        if not self.topk:
            return (probability.flatten() >= self.threshold).nonzero()[:, 0]
        flat = self.best(pyramid, probability).flatten()
        return flat if self.threshold == 0 else flat[probability.flatten()[flat] >= self.threshold]

    def budgeted(self, pyramid: Pyramid, probability: Tensor) -> LocationList:
        """The same locations among as many as the budget allows for: a number that the maps' sizes decide.

        Raises:
            ValueError: without a budget.
        """
        if not self.topk:
            raise ValueError("selection: expected a budget (topk above 0), which fixes the number of locations, got 0")
        chosen = self.best(pyramid, probability)
        active = probability.flatten()[chosen] >= self.threshold
        return LocationList.budget(pyramid, chosen, active, [min(self.topk, count) for count in pyramid.counts])

    def best(self, pyramid: Pyramid, probability: Tensor) -> Tensor:
        """The budget's locations, whatever the threshold: flat indices (N, B), ascending."""
        chosen, first = [], 0
        for part, count in zip(probability.split(pyramid.counts, 1), pyramid.counts):
            chosen.append(part.topk(min(self.topk, count), 1).indices.sort(1).values + first)
            first += count
        image = torch.arange(pyramid.images, device=probability.device) * pyramid.locations
        return torch.cat(chosen, 1) + image[:, None]


class EveryLocation(LocationSelection):
    """The locations of a threshold without a budget, where sizes must not depend on the data: all are listed, and those
    below the threshold do not count. As exact as :meth:`active`, and as slow as a dense head.
    """

    def budgeted(self, pyramid: Pyramid, probability: Tensor) -> LocationList:
        return LocationList.all(pyramid, probability.device, probability >= self.threshold)
