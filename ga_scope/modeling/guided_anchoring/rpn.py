"""GA-RPN: region proposals from guided anchors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import iou_match
from ..box_coding import BoxCoder
from ..inference import best_rows, select_proposals
from ..locations import LocationList
from ..losses import smooth_l1_loss
from ..pyramid import Pyramid
from ..results import Results, size_tensor
from ..sampling import label_matches, sample_labels
from ..targets import Targets, needed
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
        low_quality_iou: a box's best anchors are positive from this IoU on.
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
        image_sizes,
        targets: Targets | None = None,
        *,
        fixed_size: bool = False,
        maps: bool = False,
    ) -> Results:
        """Proposals of every image (detached), and the losses in training.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes of every image, in training.
            fixed_size: every size of the results follows from the features' sizes, and the device is not waited for
                (:mod:`ga_scope.modeling.locations`).
            maps: the results have their :class:`AnchorMaps`, in inference.

        Raises:
            ValueError: with ``fixed_size`` if :attr:`selection` has no budget
                (``MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST``).
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        features, location_logits, shape_deltas = self.head.generate(pyramid, features)
        sizes = size_tensor(image_sizes, shape_deltas.device)
        if not self.training:
            with torch.no_grad():
                return self._inference(pyramid, features, location_logits, shape_deltas, sizes, fixed_size, maps)
        losses, sampled = self._losses(pyramid, features, location_logits, shape_deltas, needed(targets))
        results = Results(losses, locations=pyramid.locations)
        if self.proposals_in_training:
            with torch.no_grad():
                anchors, boxes, logits, active = self._active_and_sampled(
                    pyramid, features, location_logits, shape_deltas, sampled
                )
                results.proposals = self._select(anchors, boxes, logits, sizes)
                results.anchors = active * self.shapes.per_location
        return results

    # ---- proposals ------------------------------------------------------------------------------

    def _inference(self, pyramid, features, location_logits, shape_deltas, sizes, fixed_size, maps):
        locations = self.choose(pyramid, location_logits, fixed_size, self.selection)
        boxes, logits = self._boxes(pyramid, features, shape_deltas, locations.indices)
        anchors = locations.repeat(self.shapes.per_location)
        return Results(
            proposals=self._select(anchors, boxes, logits, sizes),
            anchors=anchors.count(),
            locations=pyramid.locations,
            maps=self._maps(pyramid, location_logits, shape_deltas, locations.indices, boxes) if maps else None,
        )

    def _boxes(self, pyramid, features, shape_deltas, locations):
        """Boxes (L * K, 4) and logits (L * K,) of the anchors at locations (L,)."""
        deltas = shape_deltas.flatten(0, 1)[locations]
        logits, box_deltas = self.head.predict(features, deltas, locations)
        anchors = self.shapes.decode(pyramid, deltas, locations)
        return self.box_coder.decode(anchors, box_deltas.float()), logits.float()

    def _active_and_sampled(self, pyramid, features, location_logits, shape_deltas, sampled):
        """What makes proposals in training: the anchors at active locations, and the sampled ones, whose predictions
        are there already and which hold the positives. With them the number of active locations per image.
        """
        locations = self.choose(pyramid, location_logits, False, self.training_selection)
        boxes, logits = self._boxes(pyramid, features, shape_deltas, locations.indices)
        at, sampled_anchors, sampled_logits, sampled_deltas = (item.detach() for item in sampled)
        sampled_boxes = self.box_coder.decode(sampled_anchors, sampled_deltas.float())
        indices, order = torch.cat([locations.repeat(self.shapes.per_location).indices, at]).sort(stable=True)
        anchors = LocationList.listed(pyramid, indices)
        boxes, logits = torch.cat([boxes, sampled_boxes])[order], torch.cat([logits, sampled_logits.float()])[order]
        return anchors, boxes, logits, locations.count()

    def _select(self, anchors: LocationList, boxes: Tensor, logits: Tensor, sizes: Tensor):
        mode = 0 if self.training else 1
        candidates = best_rows(anchors, logits, self.pre_nms_topk[mode])
        return select_proposals(
            candidates,
            boxes[candidates.rows],
            sizes,
            post_nms_topk=self.post_nms_topk[mode],
            nms_thresh=self.nms_thresh,
            min_size=self.min_size,
        )

    # ---- losses ---------------------------------------------------------------------------------

    def _losses(self, pyramid, features, location_logits, shape_deltas, targets):
        """The four losses of Eq. 4; and the sampled anchors' locations, boxes, logits and deltas."""
        losses = self._anchor_losses(pyramid, location_logits, shape_deltas, targets)
        all_anchors = self.shapes.decode(pyramid, shape_deltas.detach())
        positives, negatives, boxes = self._sample_anchors(all_anchors, targets)
        sampled = torch.cat([positives, negatives])
        anchors = all_anchors.flatten(0, 1)[sampled]
        locations, logits, box_deltas = self._predict_anchors(features, shape_deltas, sampled)
        objects = torch.zeros_like(logits, dtype=torch.float32)
        objects[: len(positives)] = 1
        encoded = self.box_coder.encode(anchors[: len(positives)], boxes)
        objectness = F.binary_cross_entropy_with_logits(logits.float(), objects, reduction="sum")
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
    def _sample_anchors(self, anchors, targets):
        """Sampled positive and negative anchors (indices over the batch), and the boxes of the positives."""
        negative, positive = self.iou_thresholds
        least = self.low_quality_iou
        match = iou_match(list(anchors), targets.boxes, low_quality_from=least, ignore_boxes=targets.ignore)
        labels, index = label_matches(match, negative, positive, low_quality_from=least)
        positives, negatives = sample_labels(labels.view(anchors.shape[:2]), self.per_image, self.positive_fraction)
        return positives, negatives, torch.cat(targets.boxes)[index[positives]]
