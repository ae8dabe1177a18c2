"""What every detector on guided anchors shares: which locations are active, what the branches learn."""

import torch
from torch import Tensor, nn

from ..box_coding import center_size
from ..losses import positives_per_process
from ..pyramid import Pyramid
from .anchors import AnchorShapes, FixedShapes
from .losses import center_loss, location_loss, shape_loss
from .selection import LocationSelection
from .targets import LocationTargets, ShapeTargets

# Shapes: N images, P locations of an image, A active ones over the batch.


class AnchorGeneration(nn.Module):
    """Base of the detectors: their head's location and shape branches, selection and losses.

    Args:
        head: the network.
        strides: of the features' levels.
        shapes, selection, location_targets, shape_targets: see there.
        cell_offset: 1/2 (section 3.1), or 0 for the paper's release.
        focal_alpha, focal_gamma, outside_weight, shape_beta: of the location and shape losses.
        location_weight, shape_weight: lambda_1 and lambda_2 of Eq. 4.
    """

    def __init__(
        self,
        head: nn.Module,
        strides,
        *,
        shapes: AnchorShapes | FixedShapes | None = None,
        selection: LocationSelection | None = None,
        location_targets: LocationTargets | None = None,
        shape_targets: ShapeTargets | None = None,
        cell_offset: float = 0.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        outside_weight: float = 0.1,
        shape_beta: float = 0.2,
        location_weight: float = 1.0,
        shape_weight: float = 0.1,
    ):
        super().__init__()
        self.head = head
        self.strides = tuple(strides)
        self.shapes = shapes or AnchorShapes()
        self.selection = selection or LocationSelection()
        sigma = getattr(self.shapes, "sigma", 8.0)
        self.location_targets = location_targets or LocationTargets(sigma=sigma)
        self.shape_targets = shape_targets or ShapeTargets(sigma=sigma)
        self.cell_offset = cell_offset
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.outside_weight, self.shape_beta = outside_weight, shape_beta
        self.location_weight, self.shape_weight = location_weight, shape_weight
        self._active_counts: Tensor | None = None
        # Of the last forward: the locations that an image has.
        self.locations_per_image = 0

    @property
    def anchors_per_image(self) -> list[int]:
        """Anchors at active locations of every image of the last forward. Waits for the device."""
        counts = [] if self._active_counts is None else self._active_counts.tolist()
        return [count * self.shapes.per_location for count in counts]

    def active_locations(
        self, pyramid: Pyramid, location_logits: Tensor | None, selection: LocationSelection
    ) -> Tensor:
        """The active locations (A,), all of them without a location branch; counts them."""
        if location_logits is None:
            active = torch.arange(pyramid.images * pyramid.locations, device=self._device)
        else:
            active = selection(pyramid, location_logits.detach().float().sigmoid())
        borders = torch.arange(pyramid.images + 1, device=active.device) * pyramid.locations
        self._active_counts = torch.searchsorted(active, borders).diff()
        self.locations_per_image = pyramid.locations
        return active

    def budgeted_locations(self, pyramid: Pyramid, location_logits: Tensor | None) -> tuple[Tensor, Tensor, list[int]]:
        """The selection's locations as many as its budget allows: a number that follows from the maps' sizes alone.

        Returns:
            flat indices (N, A), ascending; which of them are active, (N, A) bool; how many of the A are on each level.

        Raises:
            ValueError: if the selection has no budget.
        """
        if location_logits is None:
            everything = torch.arange(pyramid.images * pyramid.locations, device=self._device)
            everything = everything.view(pyramid.images, pyramid.locations)
            return everything, torch.ones_like(everything, dtype=torch.bool), pyramid.counts
        if not self.selection.topk:
            raise ValueError("selection: expected a budget (topk above 0), which fixes the number of locations, got 0")
        probability = location_logits.detach().float().sigmoid()
        chosen = self.selection.best(pyramid, probability)
        active = probability.flatten()[chosen] >= self.selection.threshold
        return chosen, active, self.selection.counts(pyramid)

    @property
    def _device(self):
        return next(self.head.parameters()).device

    def _anchor_losses(
        self,
        pyramid: Pyramid,
        location_logits,
        shape_deltas: Tensor,
        gt_boxes: list[Tensor],
        ignore_boxes: list[Tensor] | None,
    ):
        """L_loc and L_shape of Eq. 4 with their weights, as far as the head has the branches.

        L_shape has positives alone, which ignore boxes do not change.
        """
        losses = {}
        if location_logits is not None:
            labels = self.location_targets(pyramid, gt_boxes, ignore_boxes)
            loss = location_loss(location_logits, labels, self.focal_alpha, self.focal_gamma, self.outside_weight)
            losses["loss_anchor_location"] = self.location_weight * loss
        if self.shapes.columns:
            samples = self.shape_targets(pyramid, gt_boxes)
            deltas = shape_deltas.flatten(0, 1)[samples.locations]
            centers, sides = center_size(self.shapes.decode(pyramid, deltas, samples.locations))
            loss = shape_loss(sides, samples.gt_sides, self.shape_beta)
            if self.shapes.centers:
                loss = loss + center_loss(centers, samples.gt_boxes, self.shape_beta)
            divisor = positives_per_process(len(loss), loss.device)
            losses["loss_anchor_shape"] = self.shape_weight * loss.sum() / divisor
        return losses
