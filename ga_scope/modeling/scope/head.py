"""The network of ScopeNet: two towers; classes from one, bins and borders from the other (Figure 2)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...ops import masked_conv2d
from ..layers import SparseTower, full, initialise, tower
from ..pyramid import Pyramid
from .bins import ScopeBins

# Shapes: N images, P locations of an image, C classes, B bins. Sides are left, top, right, bottom.

# exp() of a border regression is bounded to 1000 / 16 times the anchor, so that a wild prediction stays finite, and
# from below, far under any distance to a border, so that its loss does.
LOG_SCALE_BOUNDS = (-16.0, math.log(1000 / 16))
# log sigma^2 is bounded for the same reason.
LOG_TEMPERATURE_CLAMP = 8.0


class ScopePredictions(NamedTuple):
    """What the head says at every location of a batch. Float32 under autocast, too."""

    class_logits: Tensor  # (N, P, C)
    bin_logits: Tensor  # (N, P, 4, B) s_n / sigma^2: their softmax is Eq. 2
    borders: Tensor  # (N, P, 4, B) t_n of Eq. 1


class ScopeHead(nn.Module):
    """Class logits, bin logits and border regressions at every location, shared by all levels.

    Args:
        in_channels: of the features.
        classes: C.
        bins: the bins; with one bin there is nothing to choose, and the head regresses directly (section 4.1).
        convs, norm: of each :func:`tower <ga_scope.modeling.layers.tower>`.
        uncertainty: predict sigma^2 of Eq. 2 for each side; without, it is 1 (Table 3).
        prior: probability of every class at the start, as the focal loss wants it (Lin et al. 2017, 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        bins: ScopeBins,
        *,
        convs: int = 4,
        norm: str = "",
        uncertainty: bool = True,
        prior: float = 0.01,
    ):
        super().__init__()
        self.bins = bins
        self.uncertainty = uncertainty and bins.count > 1
        self.classification_tower = tower(in_channels, convs, norm)
        self.localization_tower = tower(in_channels, convs, norm)
        self.classes = nn.Conv2d(in_channels, classes, 3, padding=1)
        self.bin_logits = None
        if bins.count > 1:
            self.bin_logits = nn.Conv2d(in_channels, 4 * (bins.count + self.uncertainty), 3, padding=1)
        self.borders = nn.Conv2d(in_channels, 4 * bins.count, 3, padding=1)
        # a_n of Eq. 1, learned. The anchors are 2^{a_n} strides.
        self.log_anchors = nn.Parameter(torch.tensor(bins.log_centers))
        initialise(self)
        nn.init.constant_(self.classes.bias, torch.tensor(prior).logit().item())

    def forward(self, pyramid: Pyramid, features: list[Tensor]) -> ScopePredictions:
        """``features`` are (N, in_channels, H_l, W_l) per level."""
        maps = [self.localization_tower(feature) for feature in features]
        borders = pyramid.flatten([self.borders(map) for map in maps])
        bins = None if self.bin_logits is None else pyramid.flatten([self.bin_logits(map) for map in maps])
        return ScopePredictions(self.classify(pyramid, features), *self._sides(borders, bins))

    def classify(self, pyramid: Pyramid, features: list[Tensor]) -> Tensor:
        """The class logits (N, P, C) alone."""
        return full(pyramid.flatten([self.classes(self.classification_tower(feature)) for feature in features]))

    @property
    def towers_are_local(self) -> bool:
        """Whether :meth:`localize` has a tower that it can compute in part."""
        return SparseTower.possible(self.localization_tower)

    def localize(self, pyramid: Pyramid, features: list[Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Bin logits and borders (N, P, 4, B) at the ``wanted`` locations (N, P), zero elsewhere."""
        maps = SparseTower(self.localization_tower, pyramid, features)(pyramid.dilate(wanted))
        locations = wanted.flatten().nonzero()[:, 0]

        def everywhere(conv):
            rows = masked_conv2d(maps, conv.weight, conv.bias, padding=1, locations=locations)
            flat = rows.new_zeros(wanted.numel(), rows.shape[1]).index_copy(0, locations, rows)
            return flat.view(*wanted.shape, -1)

        return self._sides(everywhere(self.borders), None if self.bin_logits is None else everywhere(self.bin_logits))

    def _sides(self, borders, bin_logits):
        """Bin logits and borders (N, P, 4, B) of the convolutions' outputs (N, P, ...)."""
        borders = full(borders).unflatten(2, (4, -1))
        if bin_logits is None:
            return torch.zeros_like(borders), borders
        bin_logits = full(bin_logits).unflatten(2, (4, -1))
        return temper(bin_logits) if self.uncertainty else bin_logits, borders

    def distances(self, borders: Tensor, bins: Tensor) -> Tensor:
        """Eq. 1: d = 2^{a_n} e^{t_n} of chosen bins, in strides.

        Args:
            borders: (..., 4, B). bins: (..., 4) int64.

        Returns:
            (..., 4).
        """
        chosen = borders.gather(-1, bins[..., None]).squeeze(-1)
        return torch.exp2(self.log_anchors[bins]) * torch.exp(chosen.clamp(*LOG_SCALE_BOUNDS))

    def encode(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: the bin of each distance (...), and t of that bin. Distances must be positive."""
        bins = self.bins.index(distances)
        return bins, distances.log() - math.log(2) * self.log_anchors[bins]


def temper(logits: Tensor) -> Tensor:
    """s_n / sigma^2 of Eq. 2, (..., B), from the head's outputs (..., B + 1), the last of which is log sigma^2."""
    log_temperature = logits[..., -1:].clamp(-LOG_TEMPERATURE_CLAMP, LOG_TEMPERATURE_CLAMP)
    return logits[..., :-1] * torch.exp(-log_temperature)
