"""What the location and shape branches learn (section 3.4)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import location_targets, viou_match
from ...ops.matching import LOCATION_RULES
from ..pyramid import Pyramid
from ..sampling import label_matches, sample_labels


class LocationTargets:
    """1 where an anchor should be, -1 where it does not matter, 0 elsewhere (:func:`ga_scope.ops.location_targets`).

    ``center_ratio`` is sigma_1 and ``ignore_ratio`` sigma_2 of the paper, ``sigma`` that of Eq. 2: it decides on
    the level of a box. ``rule``: ``"paper"``, or ``"release"`` for rounded, inclusive borders and boxes that overwrite
    earlier ones.
    """

    def __init__(self, center_ratio: float = 0.2, ignore_ratio: float = 0.5, sigma: float = 8.0, rule: str = "paper"):
        if rule not in LOCATION_RULES:
            raise ValueError(f"rule: expected {' or '.join(map(repr, LOCATION_RULES))}, got {rule!r}")
        self.center_ratio = center_ratio
        self.ignore_ratio = ignore_ratio
        self.sigma = sigma
        self.rule = rule

    def __call__(self, pyramid: Pyramid, gt_boxes: list[Tensor], ignore_boxes: list[Tensor] | None = None) -> Tensor:
        """(N, P) int8."""
        labels = location_targets(
            gt_boxes,
            pyramid.sizes,
            pyramid.strides,
            self.center_ratio,
            self.ignore_ratio,
            self.sigma,
            cell_offset=pyramid.cell_offset,
            rule=self.rule,
            ignore_boxes=ignore_boxes,
        )
        return labels.view(pyramid.images, pyramid.locations)


class ShapeSamples(NamedTuple):
    """Locations that the shape loss is computed at, and what it may be divided by.

    The loss has positives alone. Divided by their number, it is a mean; the release divides by ``sampled``.
    """

    locations: Tensor  # (L,) int64
    gt_boxes: Tensor  # (L, 4) the matched box
    sampled: int  # locations of the sample, L positives and the negatives

    @property
    def gt_sides(self) -> Tensor:
        """Width and height of the matched box, (L, 2)."""
        return self.gt_boxes[:, 2:] - self.gt_boxes[:, :2]


class ShapeTargets:
    """The box that each location can cover best (vIoU, Eq. 5), for a sample of the locations that can.

    Args:
        mode: ``"sampled"``: the maximum over the sides ``sigma * s * scale * (ratio^-1/2, ratio^1/2)``, nine by
            default as in the paper; ``"exact"``: over all sides from ``size_range[0]`` to ``size_range[1]`` times
            ``sigma * s``.
        thresholds: vIoU below the first is negative, from the second positive.
        low_quality_iou: a box's best locations, all that tie, are positive from this vIoU on and learn that box.
        per_image, positive_fraction: size of the sample. Only positives have a loss.
    """

    def __init__(
        self,
        mode: str = "sampled",
        sigma: float = 8.0,
        scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios=(0.5, 1.0, 2.0),
        size_range=(0.7, 2.3),
        thresholds=(0.3, 0.7),
        low_quality_iou: float = 0.3,
        per_image: int = 256,
        positive_fraction: float = 0.5,
    ):
        if mode not in ("sampled", "exact"):
            raise ValueError(f"mode: expected 'sampled' or 'exact', got {mode!r}")
        self.mode = mode
        self.sigma = sigma
        self.shapes = [(k * r**-0.5, k * r**0.5) for k in scales for r in ratios]
        self.size_range = tuple(size_range)
        self.thresholds = tuple(thresholds)
        self.low_quality_iou = low_quality_iou
        self.per_image = per_image
        self.positive_fraction = positive_fraction

    def labels(self, pyramid: Pyramid, gt_boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Labels (N, P) and index (N, P) of the matched box over the batch."""
        negative, positive = self.thresholds
        like = gt_boxes[0]
        base = [self.sigma * stride for stride in pyramid.strides]
        # Nothing below both is needed, so boxes out of reach are skipped.
        options = {"cell_offset": pyramid.cell_offset, "min_iou": min(negative, self.low_quality_iou)}
        options["low_quality_from"] = self.low_quality_iou
        if self.mode == "sampled":
            options["shapes"] = like.new_tensor([[(b * w, b * h) for w, h in self.shapes] for b in base])
        else:
            options["size_range"] = like.new_tensor([[b * side for side in self.size_range] for b in base])
        match = viou_match(gt_boxes, pyramid.sizes, pyramid.strides, **options)
        labels, index = label_matches(match, negative, positive, self.low_quality_iou)
        shape = (pyramid.images, pyramid.locations)
        return labels.view(shape), index.view(shape)

    def __call__(self, pyramid: Pyramid, gt_boxes: list[Tensor]) -> ShapeSamples:
        labels, index = self.labels(pyramid, gt_boxes)
        positives, negatives = sample_labels(labels, self.per_image, self.positive_fraction)
        boxes = torch.cat(gt_boxes)[index.flatten()[positives]]
        return ShapeSamples(positives, boxes, len(positives) + len(negatives))
