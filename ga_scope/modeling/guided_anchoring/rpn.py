"""GA-RPN: region proposals from guided anchors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import iou_match
from ..box_coding import BoxCoder
from ..losses import smooth_l1_loss
from ..proposals import Proposals, select_proposals
from ..pyramid import Pyramid
from ..sampling import label_matches, sample_labels
from .anchors import AnchorShapes
from .head import GuidedAnchorHead
from .losses import location_loss, shape_loss
from .selection import LocationSelection
from .targets import LocationTargets, ShapeTargets

# Shapes: N images, P locations of an image, A active ones over the batch, S sampled ones.


class GuidedAnchorRPN(nn.Module):
    """Features of a pyramid to proposals, and the losses of section 3.4 in training.

    In training the second phase of the head runs where it is used: with gradients at the sampled
    locations, and without at the active ones, which only make proposals.

    Args:
        head: the network.
        strides: of the features' levels.
        shapes, selection, training_selection, location_targets, shape_targets: see there.
        cell_offset: 1/2 (section 3.1), or 0 for the paper's release.
        box_coder: of the deltas from anchor to box.
        iou_thresholds: (negative below, positive from) of the anchors' IoU with a box.
        low_quality_iou: a box's best anchor is positive from this IoU on.
        per_image, positive_fraction: sample of the anchors for the objectness and box losses.
        focal_alpha, focal_gamma, outside_weight, shape_beta: of the location and shape losses.
        smooth_l1_beta: of the box loss.
        loss_weights: of ``location`` (lambda_1), ``shape`` (lambda_2), ``objectness`` and ``box``.
        pre_nms_topk, post_nms_topk: (training, inference), per level and per image.
        proposals_in_training: False if nobody uses them there: GA-RPN alone trains faster without.
    """

    def __init__(
        self,
        head: GuidedAnchorHead,
        strides,
        *,
        shapes: AnchorShapes | None = None,
        selection: LocationSelection | None = None,
        training_selection: LocationSelection | None = None,
        location_targets: LocationTargets | None = None,
        shape_targets: ShapeTargets | None = None,
        cell_offset: float = 0.5,
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.3, 0.7),
        per_image: int = 256,
        positive_fraction: float = 0.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        outside_weight: float = 0.1,
        low_quality_iou: float = 0.3,
        shape_beta: float = 0.2,
        smooth_l1_beta: float = 1 / 9,
        loss_weights=None,
        pre_nms_topk=(2000, 2000),
        post_nms_topk=(1000, 1000),
        nms_thresh: float = 0.7,
        min_size: float = 0.0,
        proposals_in_training: bool = True,
    ):
        super().__init__()
        self.head = head
        self.strides = tuple(strides)
        self.shapes = shapes or AnchorShapes()
        self.selection = selection or LocationSelection()
        self.training_selection = training_selection or LocationSelection(self.selection.threshold, pre_nms_topk[0])
        self.location_targets = location_targets or LocationTargets(sigma=self.shapes.sigma)
        self.shape_targets = shape_targets or ShapeTargets(sigma=self.shapes.sigma)
        self.cell_offset = cell_offset
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds = tuple(iou_thresholds)
        self.per_image = per_image
        self.positive_fraction = positive_fraction
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.outside_weight, self.low_quality_iou = outside_weight, low_quality_iou
        self.shape_beta, self.smooth_l1_beta = shape_beta, smooth_l1_beta
        self.loss_weights = {"location": 1.0, "shape": 0.1, "objectness": 1.0, "box": 1.0} | (loss_weights or {})
        self.pre_nms_topk, self.post_nms_topk = tuple(pre_nms_topk), tuple(post_nms_topk)
        self.nms_thresh, self.min_size = nms_thresh, min_size
        self.proposals_in_training = proposals_in_training
        # Of the last forward: active locations per image, and the locations that an image has.
        self.anchors_per_image: list[int] = []
        self.locations_per_image = 0

    def forward(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], gt_boxes: list[Tensor] | None = None
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of every image (detached), and the losses where ``gt_boxes`` are given in training.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding.
            gt_boxes: (G, 4) per image.
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        features, location_logits, shape_deltas = self.head.generate(pyramid, features)
        losses, sampled = {}, None
        if self.training:
            if gt_boxes is None:
                raise ValueError("gt_boxes: expected the boxes of every image in training, got None")
            gt_boxes = [boxes.float() for boxes in gt_boxes]
            losses, sampled = self._losses(pyramid, features, location_logits, shape_deltas, gt_boxes)
            if not self.proposals_in_training:
                empty = shape_deltas.new_zeros(0, 4, dtype=torch.float32)
                return [Proposals(empty, empty[:, 0]) for _ in image_sizes], losses
        with torch.no_grad():
            proposals = self._proposals(pyramid, features, location_logits, shape_deltas, image_sizes, sampled)
        return proposals, losses

    # ---- proposals ------------------------------------------------------------------------------

    def _proposals(self, pyramid, features, location_logits, shape_deltas, image_sizes, sampled):
        selection = self.training_selection if self.training else self.selection
        active = selection(pyramid, location_logits.detach().float().sigmoid())
        self._count(pyramid, active)
        deltas = shape_deltas.flatten(0, 1)[active]
        logits, box_deltas = self.head.predict(features, deltas, active)
        if sampled is not None:  # their predictions are there already, and they hold the positives
            locations, sampled_logits, sampled_deltas = sampled
            active = torch.cat([active, locations])
            deltas = torch.cat([deltas, shape_deltas.flatten(0, 1)[locations]])
            logits = torch.cat([logits, sampled_logits.detach()])
            box_deltas = torch.cat([box_deltas, sampled_deltas.detach()])
        boxes = self.box_coder.decode(self.shapes.decode(pyramid, deltas, active), box_deltas.float())
        logits = logits.float()
        levels = pyramid.per_level(range(len(self.strides)), active.device, torch.int64)[active % pyramid.locations]
        images = active // pyramid.locations
        mode = 0 if self.training else 1
        proposals = []
        for image, size in enumerate(image_sizes):
            of_image = (images == image).nonzero()[:, 0]
            proposals.append(
                select_proposals(
                    boxes[of_image],
                    logits[of_image],
                    levels[of_image],
                    size,
                    pre_nms_topk=self.pre_nms_topk[mode],
                    post_nms_topk=self.post_nms_topk[mode],
                    nms_thresh=self.nms_thresh,
                    min_size=self.min_size,
                )
            )
        return proposals

    def _count(self, pyramid, active):
        counts = torch.bincount(active // pyramid.locations, minlength=pyramid.images)
        self.anchors_per_image = counts.tolist()
        self.locations_per_image = pyramid.locations

    # ---- losses ---------------------------------------------------------------------------------

    def _losses(self, pyramid, features, location_logits, shape_deltas, gt_boxes):
        """The four losses of Eq. 4, and the sampled locations with their predictions."""
        labels = self.location_targets(pyramid, gt_boxes)
        location = location_loss(location_logits, labels, self.focal_alpha, self.focal_gamma, self.outside_weight)
        losses = {"loss_anchor_location": location}

        flat_deltas = shape_deltas.flatten(0, 1)
        samples = self.shape_targets(pyramid, gt_boxes)
        sides = self.shapes.sides(pyramid, flat_deltas[samples.locations], samples.locations)
        losses["loss_anchor_shape"] = shape_loss(sides, samples.gt_sides, self.shape_beta)

        anchors = self.shapes.decode(pyramid, shape_deltas.detach())
        positives, negatives, boxes = self._sample_anchors(anchors, gt_boxes)
        locations = torch.cat([positives, negatives])
        logits, box_deltas = self.head.predict(features, flat_deltas[locations], locations)
        targets = torch.zeros_like(logits, dtype=torch.float32)
        targets[: len(positives)] = 1
        encoded = self.box_coder.encode(anchors.flatten(0, 1)[positives], boxes)
        normalizer = self.per_image * pyramid.images
        objectness = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        box = smooth_l1_loss(box_deltas[: len(positives)].float() - encoded, self.smooth_l1_beta).sum()
        losses["loss_rpn_cls"] = objectness / normalizer
        losses["loss_rpn_loc"] = box / normalizer
        weights = self.loss_weights
        scale = dict(zip(losses, (weights["location"], weights["shape"], weights["objectness"], weights["box"])))
        return {name: loss * scale[name] for name, loss in losses.items()}, (locations, logits, box_deltas)

    @torch.no_grad()
    def _sample_anchors(self, anchors, gt_boxes):
        """Sampled positive and negative locations, and the boxes that the positives are matched with."""
        negative, positive = self.iou_thresholds
        match = iou_match(list(anchors), gt_boxes)
        labels, index = label_matches(match, negative, positive, low_quality_from=self.low_quality_iou)
        positives, negatives = sample_labels(labels.view(anchors.shape[:2]), self.per_image, self.positive_fraction)
        return positives, negatives, torch.cat(gt_boxes)[index[positives]]
