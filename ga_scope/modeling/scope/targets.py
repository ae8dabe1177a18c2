"""Which box every location learns (section 3.2), without a matrix of locations and boxes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import location_targets
from ..pyramid import Pyramid

# Shapes: N images, P locations of an image, G boxes of the batch, K candidates of a box on a level.


class LocationBoxes(NamedTuple):
    """The index of each location's box among the boxes of the batch, -1 for none. Both (N, P) int64."""

    classification: Tensor
    localization: Tensor


class ScopeTargets:
    """A location learns a box if it lies inside, near its centre, and the box is of its level.

    Near is within a radius times the stride in x and in y (the paper says "within a distance to the center";
    FCOS, which it follows, has a square), of the level if the largest of the four distances to the sides lies in
    the level's range, [r_l, r_{l+1}). Of several boxes a location learns the smallest, of several of one area the
    first.

    Only the few cells of each level that are near a box's centre are looked at, so time and memory go with the
    number of boxes, not with that of locations times boxes.

    Args:
        ranges: pixels that separate the levels' ranges: 64, 128, ... in the paper. One fewer than there are levels;
            the first range starts at 0, the last has no end.
        radii: of classification and localization, in strides.
    """

    def __init__(self, ranges=(64, 128, 256, 512), radii=(1.5, 2.0)):
        self.ranges = tuple(ranges)
        self.radii = tuple(radii)

    @torch.no_grad()
    def __call__(self, pyramid: Pyramid, gt_boxes: list[Tensor]) -> LocationBoxes:
        """``gt_boxes`` are (G_n, 4) per image, in pixels."""
        if len(self.ranges) != len(pyramid.strides) - 1:
            raise ValueError(
                f"ranges: expected {len(pyramid.strides) - 1} limits between {len(pyramid.strides)} levels, "
                f"got {len(self.ranges)}"
            )
        boxes = torch.cat(gt_boxes)
        image = torch.cat([torch.full((len(b),), n, device=boxes.device) for n, b in enumerate(gt_boxes)])
        # Rank 0 has the first say.
        order = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sort(stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        best = [torch.full((pyramid.images * pyramid.locations,), len(order), device=boxes.device) for _ in self.radii]
        first = 0
        limits = (0.0, *self.ranges, float("inf"))
        for level, (height, width) in enumerate(pyramid.sizes):
            x, y, distance, offset = self._candidates(boxes, pyramid.strides[level], pyramid.cell_offset)
            largest = distance.amax(-1)
            good = (distance.amin(-1) > 0) & (largest >= limits[level]) & (largest < limits[level + 1])
            good &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
            location = image[:, None] * pyramid.locations + first + y * width + x
            for radius, winner in zip(self.radii, best):
                near = good & (offset <= radius * pyramid.strides[level])
                ranks = rank[:, None].expand_as(near)[near]
                winner.scatter_reduce_(0, location[near], ranks, "amin")
            first += height * width
        order = torch.cat([order, order.new_full((1,), -1)])
        shape = (pyramid.images, pyramid.locations)
        return LocationBoxes(*(order[winner].view(shape) for winner in best))

    def _candidates(self, boxes, stride, cell_offset):
        """The cells of a level that may be near each box's centre.

        Returns:
            x, y: (G, K) int64, also outside the map. Distances to left, top, right, bottom (G, K, 4) and the larger
            of |x - x_c| and |y - y_c| (G, K), in pixels.
        """
        radius = max(self.radii)
        center = 0.5 * (boxes[:, :2] + boxes[:, 2:])
        # One cell more than the radius needs on each side: rounding decides nothing here.
        start = (center / stride - cell_offset - radius).floor().long() - 1
        steps = torch.arange(int(2 * radius) + 4, device=boxes.device)
        x = (start[:, 0, None, None] + steps).expand(-1, len(steps), -1).flatten(1)
        y = (start[:, 1, None, None] + steps[:, None]).expand(-1, -1, len(steps)).flatten(1)
        point = (torch.stack([x, y], -1) + cell_offset) * stride
        point = point.to(boxes.dtype)
        distance = torch.cat([point - boxes[:, None, :2], boxes[:, None, 2:] - point], -1)
        return x, y, distance, (point - center[:, None]).abs().amax(-1)


@torch.no_grad()
def ignored_locations(pyramid: Pyramid, learned: Tensor, ignore_boxes: list[Tensor]) -> Tensor:
    """Which locations are neither object nor background for the classification loss: those whose points lie in an
    ignore box (a crowd, say) and that learn no object. Time and memory go with locations plus boxes.

    Args:
        learned: (N, P), :attr:`LocationBoxes.classification`.
        ignore_boxes: (B_n, 4) per image, in pixels.

    Returns:
        (N, P) bool.
    """
    if len(ignore_boxes) != pyramid.images:
        raise ValueError(f"ignore_boxes: expected those of {pyramid.images} images, got {len(ignore_boxes)}")
    # The targets of no objects: what is ignored there are the ignore boxes.
    labels = location_targets(
        [boxes[:0] for boxes in ignore_boxes],
        pyramid.sizes,
        pyramid.strides,
        cell_offset=pyramid.cell_offset,
        ignore_boxes=ignore_boxes,
    )
    return (labels.view(learned.shape) == -1) & (learned < 0)
