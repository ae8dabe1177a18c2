"""What every detector on guided anchors shares: which locations are active, what the branches learn."""

from torch import Tensor, nn

from ..box_coding import center_size
from ..locations import LocationList
from ..losses import positives_per_process
from ..pyramid import Pyramid
from ..results import AnchorMaps
from ..targets import Targets
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
        shape_divisor: of the shape loss: ``"positives"``, their number, so that it is the mean of Eq. 6; or
            ``"sample"``, as the release, the size of the sample that they were drawn in.
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
        shape_divisor: str = "positives",
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
        if shape_divisor not in ("positives", "sample"):
            raise ValueError(f"shape_divisor: expected 'positives' or 'sample', got {shape_divisor!r}")
        self.outside_weight, self.shape_beta, self.shape_divisor = outside_weight, shape_beta, shape_divisor
        self.location_weight, self.shape_weight = location_weight, shape_weight

    def choose(
        self, pyramid: Pyramid, location_logits: Tensor | None, fixed_size: bool, selection: LocationSelection
    ) -> LocationList:
        """The active locations: those that the data gives, or of ``fixed_size`` (:meth:`LocationSelection.budgeted`).

        Without a location branch all are.
        """
        if location_logits is None:
            return LocationList.all(pyramid, self._device)
        probability = location_logits.detach().float().sigmoid()
        if fixed_size:
            return selection.budgeted(pyramid, probability)
        return LocationList.listed(pyramid, selection.active(pyramid, probability))

    def _maps(self, pyramid: Pyramid, location_logits, shape_deltas, active: Tensor, boxes: Tensor) -> AnchorMaps:
        if location_logits is None:
            probability = shape_deltas.new_ones(shape_deltas.shape[:2])
        else:
            probability = location_logits.float().sigmoid()
        return AnchorMaps(pyramid, probability, self.shapes.decode(pyramid, shape_deltas), active, boxes)

    @property
    def _device(self):
        return next(self.head.parameters()).device

    def _anchor_losses(
        self,
        pyramid: Pyramid,
        location_logits,
        shape_deltas: Tensor,
        targets: Targets,
    ):
        """L_loc and L_shape of Eq. 4 with their weights, as far as the head has the branches.

        L_shape has positives alone, which ignore boxes do not change.
        """
        losses = {}
        if location_logits is not None:
            labels = self.location_targets(pyramid, targets.boxes, targets.ignore)
            loss = location_loss(location_logits, labels, self.focal_alpha, self.focal_gamma, self.outside_weight)
            losses["loss_anchor_location"] = self.location_weight * loss
        if self.shapes.columns:
            samples = self.shape_targets(pyramid, targets.boxes)
            deltas = shape_deltas.flatten(0, 1)[samples.locations]
            centers, sides = center_size(self.shapes.decode(pyramid, deltas, samples.locations))
            loss = shape_loss(sides, samples.gt_sides, self.shape_beta)
            if self.shapes.centers or self.shape_divisor == "sample":
                # The release has it for fixed centres, too: a constant.
                loss = loss + center_loss(centers, samples.gt_boxes, self.shape_beta)
            counted = samples.sampled if self.shape_divisor == "sample" else len(loss)
            divisor = positives_per_process(counted, loss.device)
            losses["loss_anchor_shape"] = self.shape_weight * loss.sum() / divisor
        return losses
