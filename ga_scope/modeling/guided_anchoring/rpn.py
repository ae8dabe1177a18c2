"""GA-RPN: region proposals from guided anchors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import iou_match
from ..box_coding import BoxCoder
from ..losses import smooth_l1_loss
from ..padded import PaddedProposals, pad_proposals
from ..proposals import Proposals, select_proposals
from ..pyramid import Pyramid
from ..sampling import label_matches, sample_labels
from .generation import AnchorGeneration
from .head import GuidedAnchorHead
from .selection import LocationSelection

# Shapes: N images, P locations of an image, A active ones over the batch, S sampled anchors, K anchors per
# location (1, unless an ablation has fixed shapes).


class GuidedAnchorRPN(AnchorGeneration):
    """Features of a pyramid to proposals, and the losses of section 3.4 in training.

    In training the second phase of the head runs where it is used: with gradients at the sampled
    locations, and without at the active ones, which only make proposals.

    Args:
        head, strides, **generation: see :class:`AnchorGeneration`.
        training_selection: of the locations that make proposals in training.
        box_coder: of the deltas from anchor to box.
        iou_thresholds: (negative below, positive from) of the anchors' IoU with a box.
        low_quality_iou: a box's best anchor is positive from this IoU on.
        per_image, positive_fraction: sample of the anchors for the objectness and box losses.
        smooth_l1_beta: of the box loss.
        objectness_weight, box_weight: of L_cls and L_reg.
        pre_nms_topk, post_nms_topk: (training, inference), per level and per image.
        proposals_in_training: False if nobody uses them there: GA-RPN alone trains faster without.
    """

    def __init__(
        self,
        head: GuidedAnchorHead,
        strides,
        *,
        training_selection: LocationSelection | None = None,
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.3, 0.7),
        low_quality_iou: float = 0.3,
        per_image: int = 256,
        positive_fraction: float = 0.5,
        smooth_l1_beta: float = 1 / 9,
        objectness_weight: float = 1.0,
        box_weight: float = 1.0,
        pre_nms_topk=(2000, 2000),
        post_nms_topk=(1000, 1000),
        nms_thresh: float = 0.7,
        min_size: float = 0.0,
        proposals_in_training: bool = True,
        **generation,
    ):
        super().__init__(head, strides, **generation)
        self.training_selection = training_selection or LocationSelection(self.selection.threshold, pre_nms_topk[0])
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds, self.low_quality_iou = tuple(iou_thresholds), low_quality_iou
        self.per_image = per_image
        self.positive_fraction = positive_fraction
        self.smooth_l1_beta = smooth_l1_beta
        self.objectness_weight, self.box_weight = objectness_weight, box_weight
        self.pre_nms_topk, self.post_nms_topk = tuple(pre_nms_topk), tuple(post_nms_topk)
        self.nms_thresh, self.min_size = nms_thresh, min_size
        self.proposals_in_training = proposals_in_training

    def forward(
        self,
        features: list[Tensor],
        image_sizes: list[tuple[int, int]],
        gt_boxes: list[Tensor] | None = None,
        ignore_boxes: list[Tensor] | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of every image (detached), and the losses where ``gt_boxes`` are given in training.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding.
            gt_boxes: (G, 4) per image.
            ignore_boxes: (B, 4) per image, crowd regions: nothing inside them is a negative. Default: none.
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        features, location_logits, shape_deltas = self.head.generate(pyramid, features)
        losses, sampled = {}, None
        if self.training:
            if gt_boxes is None:
                raise ValueError("gt_boxes: expected the boxes of every image in training, got None")
            gt_boxes = [boxes.float() for boxes in gt_boxes]
            ignore_boxes = ignore_boxes and [boxes.float() for boxes in ignore_boxes]
            losses, sampled = self._losses(pyramid, features, location_logits, shape_deltas, gt_boxes, ignore_boxes)
            if not self.proposals_in_training:
                self._active_counts = None  # none were chosen
                empty = shape_deltas.new_zeros(0, 4, dtype=torch.float32)
                return [Proposals(empty, empty[:, 0]) for _ in image_sizes], losses
        with torch.no_grad():
            proposals = self._proposals(pyramid, features, location_logits, shape_deltas, image_sizes, sampled)
        return proposals, losses

    # ---- proposals ------------------------------------------------------------------------------

    def _proposals(self, pyramid, features, location_logits, shape_deltas, image_sizes, sampled):
        active = self.active_locations(
            pyramid, location_logits, self.training_selection if self.training else self.selection
        )
        deltas = shape_deltas.flatten(0, 1)[active]
        logits, box_deltas = self.head.predict(features, deltas, active)
        anchors = self.shapes.decode(pyramid, deltas, active)
        locations = active.repeat_interleave(self.shapes.per_location)
        if sampled is not None:  # their predictions are there already, and they hold the positives
            of_sample = [item.detach() for item in sampled]
            locations, anchors, logits, box_deltas = (
                torch.cat(pair) for pair in zip((locations, anchors, logits, box_deltas), of_sample)
            )
        boxes, logits = self.box_coder.decode(anchors, box_deltas.float()), logits.float()
        levels = pyramid.per_level(range(len(self.strides)), boxes.device, torch.int64)[locations % pyramid.locations]
        images = locations // pyramid.locations
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

    @torch.no_grad()
    def padded_proposals(self, features: list[Tensor], image_sizes: Tensor) -> PaddedProposals:
        """The proposals of inference in tensors whose sizes follow from the features' alone; the device is not waited
        for (:mod:`ga_scope.modeling.padded`).

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (N, 2), height and width of every image without its padding, on the features' device.

        Raises:
            ValueError: if :attr:`selection` has no budget (``MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST``).
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        features, location_logits, shape_deltas = self.head.generate(pyramid, features)
        chosen, active, counts = self.budgeted_locations(pyramid, location_logits)
        locations, k = chosen.flatten(), self.shapes.per_location
        deltas = shape_deltas.flatten(0, 1)[locations]
        logits, box_deltas = self.head.predict(features, deltas, locations)
        boxes = self.box_coder.decode(self.shapes.decode(pyramid, deltas, locations), box_deltas.float())
        return pad_proposals(
            boxes.view(pyramid.images, -1, 4),
            logits.float().view(pyramid.images, -1),
            active.repeat_interleave(k, 1) if k > 1 else active,
            [k * count for count in counts],
            image_sizes,
            pre_nms_topk=self.pre_nms_topk[1],
            post_nms_topk=self.post_nms_topk[1],
            nms_thresh=self.nms_thresh,
            min_size=self.min_size,
        )

    # ---- losses ---------------------------------------------------------------------------------

    def _losses(self, pyramid, features, location_logits, shape_deltas, gt_boxes, ignore_boxes):
        """The four losses of Eq. 4; and the sampled anchors' locations, boxes, logits and deltas."""
        losses = self._anchor_losses(pyramid, location_logits, shape_deltas, gt_boxes, ignore_boxes)
        all_anchors = self.shapes.decode(pyramid, shape_deltas.detach())
        positives, negatives, boxes = self._sample_anchors(all_anchors, gt_boxes, ignore_boxes)
        sampled = torch.cat([positives, negatives])
        anchors = all_anchors.flatten(0, 1)[sampled]
        locations, logits, box_deltas = self._predict_anchors(features, shape_deltas, sampled)
        targets = torch.zeros_like(logits, dtype=torch.float32)
        targets[: len(positives)] = 1
        encoded = self.box_coder.encode(anchors[: len(positives)], boxes)
        objectness = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        box = smooth_l1_loss(box_deltas[: len(positives)].float() - encoded, self.smooth_l1_beta).sum()
        normalizer = self.per_image * pyramid.images
        losses["loss_rpn_cls"] = self.objectness_weight * objectness / normalizer
        losses["loss_rpn_loc"] = self.box_weight * box / normalizer
        return losses, (locations, anchors, logits, box_deltas)

    def _predict_anchors(self, features, shape_deltas, indices):
        """Locations (S,), logits (S,) and deltas (S, 4) of anchors by their indices (S,)."""
        k = self.shapes.per_location
        locations = indices // k
        logits, deltas = self.head.predict(features, shape_deltas.flatten(0, 1)[locations], locations)
        if k > 1:
            row = torch.arange(len(indices), device=indices.device) * k + indices % k
            logits, deltas = logits[row], deltas[row]
        return locations, logits, deltas

    @torch.no_grad()
    def _sample_anchors(self, anchors, gt_boxes, ignore_boxes):
        """Sampled positive and negative anchors (indices over the batch), and the boxes of the positives."""
        negative, positive = self.iou_thresholds
        match = iou_match(list(anchors), gt_boxes, ignore_boxes=ignore_boxes)
        labels, index = label_matches(match, negative, positive, low_quality_from=self.low_quality_iou)
        positives, negatives = sample_labels(labels.view(anchors.shape[:2]), self.per_image, self.positive_fraction)
        return positives, negatives, torch.cat(gt_boxes)[index[positives]]
