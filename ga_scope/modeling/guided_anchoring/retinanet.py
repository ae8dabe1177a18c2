"""GA-RetinaNet: one stage, from guided anchors to classes and boxes.

The location branch sits on the classification tower and the shape branch on the regression tower, each
tower has its own feature adaption, and 3x3 convolutions predict (the paper's release; the paper says only
that the sliding window is replaced). So a prediction at an active location needs the adapted features of
its eight neighbours as well: the adaption runs on the active set grown by the convolution's reach, the
convolution on the active set alone.
"""

import torch
from torch import Tensor, nn

from ...ops import MaskedConv2d, iou_match
from ..box_coding import BoxCoder
from ..detections import Detections, select_candidates, select_detections
from ..layers import initialise, tower
from ..losses import positives_per_process, sigmoid_focal_loss, smooth_l1_loss
from ..padded import PaddedDetections, pad_detections
from ..pyramid import Pyramid
from ..sampling import IGNORED, POSITIVE, label_matches
from .adaption import FeatureAdaption
from .generation import AnchorGeneration
from .head import location_branch, shape_branch

# Shapes: N images, C channels, P locations of an image, L listed locations, A active ones over the batch.

REACH = 1  # of a 3x3 convolution, in cells


class Towers:
    """The two feature lists that the head's second phase reads."""

    def __init__(self, classification: list[Tensor], regression: list[Tensor]):
        self.classification = classification
        self.regression = regression


class Branch(nn.Module):
    """A tower's second phase: feature adaption, then a 3x3 prediction, at listed locations."""

    def __init__(self, channels: int, outputs: int, offset_groups: int, offsets: str):
        super().__init__()
        self.adaption = FeatureAdaption(channels, offset_groups, offsets)
        self.predict = MaskedConv2d(channels, outputs, 3, padding=REACH)
        initialise(self.predict)

    def forward(self, pyramid: Pyramid, features: list[Tensor], shape_deltas: Tensor, locations: Tensor, grown=None):
        """(L, outputs); ``shape_deltas`` (N, P, columns) detached, of all locations.

        ``grown`` lists at least the locations within reach of the listed ones, repeats allowed; by default each once.
        """
        grown = pyramid.grow(locations, REACH) if grown is None else grown
        adapted = self.adaption(features, shape_deltas.flatten(0, 1)[grown], grown)
        # Zero where it was not computed: never within reach of a listed location.
        return self.predict(pyramid.scatter(adapted, grown), locations=locations)


class GuidedAnchorRetinaHead(nn.Module):
    """Two towers; location and shape of the anchors; class logits and box deltas at chosen ones.

    Args:
        in_channels: C.
        num_classes: of the objects.
        num_convs, norm: of each :func:`tower <ga_scope.modeling.layers.tower>`.
        offset_groups, offsets: of both :class:`FeatureAdaption`.
        shape_columns: :attr:`AnchorShapes.columns`.
        prior: probability of every class at the start, as the focal loss wants it (Lin et al. 2017, 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_convs: int = 4,
        offset_groups: int = 4,
        *,
        norm: str = "",
        offsets: str = "shape",
        shape_columns: int = 2,
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.classification_tower = tower(in_channels, num_convs, norm)
        self.regression_tower = tower(in_channels, num_convs, norm)
        initialise(self.classification_tower, self.regression_tower)
        self.location = location_branch(in_channels)
        self.shape = shape_branch(in_channels, shape_columns)
        self.classification = Branch(in_channels, num_classes, offset_groups, offsets)
        self.regression = Branch(in_channels, 4, offset_groups, offsets)
        nn.init.constant_(self.classification.predict.bias, torch.tensor(prior).logit().item())

    def generate(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[Towers, Tensor, Tensor]:
        """Phase one, at every location: the towers, location logits (N, P), shape deltas (N, P, columns)."""
        towers = Towers([self.classification_tower(f) for f in features], [self.regression_tower(f) for f in features])
        location = pyramid.flatten([self.location(f) for f in towers.classification]).squeeze(2)
        return towers, location, pyramid.flatten([self.shape(f) for f in towers.regression])

    def classify(self, pyramid: Pyramid, towers: Towers, shape_deltas: Tensor, locations: Tensor, grown=None):
        """Class logits (L, classes) at the locations; no gradient flows into the shapes (section 3.3).

        ``grown`` as :class:`Branch` takes it.
        """
        return self.classification(pyramid, towers.classification, shape_deltas.detach(), locations, grown)

    def regress(self, pyramid: Pyramid, towers: Towers, shape_deltas: Tensor, locations: Tensor, grown=None):
        """Box deltas (L, 4) at the locations."""
        return self.regression(pyramid, towers.regression, shape_deltas.detach(), locations, grown)


class GuidedAnchorRetinaNet(AnchorGeneration):
    """Features of a pyramid to detections, and the losses in training.

    In training every location that is not ignored is classified, as in RetinaNet; boxes are regressed at the
    positive ones alone, which is all that the box loss reads.

    Args:
        head, strides, **generation: see :class:`AnchorGeneration`.
        box_coder: of the deltas from anchor to box.
        iou_thresholds: (negative below, positive from) of the anchors' IoU with a box. A box's best anchor is
            positive from ``low_quality_iou`` on.
        class_alpha, class_gamma: of the classes' focal loss.
        smooth_l1_beta: of the box loss.
        score_thresh, topk_candidates, nms_thresh, detections_per_image: of the inference, as RetinaNet's.
    """

    def __init__(
        self,
        head: GuidedAnchorRetinaHead,
        strides,
        *,
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.5, 0.5),
        low_quality_iou: float = 0.0,
        class_alpha: float = 0.25,
        class_gamma: float = 2.0,
        smooth_l1_beta: float = 0.04,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
        **generation,
    ):
        super().__init__(head, strides, **generation)
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds, self.low_quality_iou = tuple(iou_thresholds), low_quality_iou
        self.class_alpha, self.class_gamma = class_alpha, class_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.score_thresh, self.topk_candidates = score_thresh, topk_candidates
        self.nms_thresh, self.detections_per_image = nms_thresh, detections_per_image

    def forward(
        self,
        features: list[Tensor],
        image_sizes: list[tuple[int, int]],
        gt_boxes: list[Tensor] | None = None,
        gt_classes: list[Tensor] | None = None,
        ignore_boxes: list[Tensor] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """In inference the detections of every image and no losses; in training no detections and the losses.

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding.
            gt_boxes, gt_classes: (G, 4) and (G,) from 0, per image, in training.
            ignore_boxes: (B, 4) per image, crowd regions: nothing inside them is a negative. Default: none.
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        towers, location_logits, shape_deltas = self.head.generate(pyramid, features)
        if not self.training:
            return self._detections(pyramid, towers, location_logits, shape_deltas, image_sizes), {}
        if gt_boxes is None or gt_classes is None:
            raise ValueError("gt_boxes, gt_classes: expected those of every image in training, got None")
        gt_boxes = [boxes.float() for boxes in gt_boxes]
        ignore_boxes = ignore_boxes and [boxes.float() for boxes in ignore_boxes]
        classes = torch.cat(gt_classes)
        return [], self._losses(pyramid, towers, location_logits, shape_deltas, gt_boxes, classes, ignore_boxes)

    @torch.no_grad()
    def _detections(self, pyramid, towers, location_logits, shape_deltas, image_sizes):
        active = self.active_locations(pyramid, location_logits, self.selection)
        scores = self.head.classify(pyramid, towers, shape_deltas, active).float().sigmoid()
        place = active % pyramid.locations
        levels = pyramid.per_level(range(len(self.strides)), active.device, torch.int64)[place]
        images = active // pyramid.locations
        # Candidates are chosen first, so that boxes are regressed only for them.
        rows, classes = select_candidates(
            scores, images * len(self.strides) + levels, self.score_thresh, self.topk_candidates
        )
        needed, row_of = rows.unique(return_inverse=True)
        chosen = active[needed]
        deltas = self.head.regress(pyramid, towers, shape_deltas, chosen).float()
        anchors = self.shapes.decode(pyramid, shape_deltas.flatten(0, 1)[chosen], chosen)
        boxes = self.box_coder.decode(anchors, deltas)[row_of]
        found = []
        for image, size in enumerate(image_sizes):
            of_image = (images[rows] == image).nonzero()[:, 0]
            found.append(
                select_detections(
                    boxes[of_image],
                    scores[rows[of_image], classes[of_image]],
                    classes[of_image],
                    size,
                    self.nms_thresh,
                    self.detections_per_image,
                )
            )
        return found

    @torch.no_grad()
    def padded_detections(self, features: list[Tensor], image_sizes: Tensor) -> PaddedDetections:
        """The detections of inference in tensors whose sizes follow from the features' alone; the device is not waited
        for (:mod:`ga_scope.modeling.padded`).

        Args:
            features: (N, C, H_l, W_l) per level.
            image_sizes: (N, 2), height and width of every image without its padding, on the features' device.

        Raises:
            ValueError: if :attr:`selection` has no budget (``MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST``).
        """
        pyramid = Pyramid.of(features, self.strides, self.cell_offset)
        towers, location_logits, shape_deltas = self.head.generate(pyramid, features)
        chosen, active, counts = self.budgeted_locations(pyramid, location_logits)
        locations, images = chosen.flatten(), pyramid.images
        grown = pyramid.around(locations, REACH).flatten()
        if len(grown) >= images * pyramid.locations:  # without the repeats it is less to adapt all
            grown = torch.arange(images * pyramid.locations, device=locations.device)
        scores = self.head.classify(pyramid, towers, shape_deltas, locations, grown).float().sigmoid()
        deltas = self.head.regress(pyramid, towers, shape_deltas, locations, grown).float()
        anchors = self.shapes.decode(pyramid, shape_deltas.flatten(0, 1)[locations], locations)
        boxes = self.box_coder.decode(anchors, deltas).view(images, -1, 4)
        scores = scores.view(images, -1, scores.shape[1])
        scores = scores.masked_fill(~(active[..., None] & (scores > self.score_thresh)), 0)
        best, first = [], 0
        for part, count in zip(scores.split(counts, 1), counts):
            top = part.flatten(1).topk(min(self.topk_candidates, part[0].numel()), 1)
            best.append((top.values, top.indices + first * scores.shape[2]))
            first += count
        values, candidates = (torch.cat(parts, 1) for parts in zip(*best))
        rows, classes = candidates // scores.shape[2], candidates % scores.shape[2]
        return pad_detections(
            boxes.gather(1, rows[..., None].expand(-1, -1, 4)),
            values,
            classes,
            image_sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
        )

    def _losses(self, pyramid, towers, location_logits, shape_deltas, gt_boxes, gt_classes, ignore_boxes):
        losses = self._anchor_losses(pyramid, location_logits, shape_deltas, gt_boxes, ignore_boxes)
        anchors = self.shapes.decode(pyramid, shape_deltas.detach())
        match = iou_match(list(anchors), gt_boxes, ignore_boxes=ignore_boxes)
        labels, index = label_matches(match, *self.iou_thresholds, self.low_quality_iou)
        positives, counted = (labels == POSITIVE).nonzero()[:, 0], (labels != IGNORED).nonzero()[:, 0]
        normalizer = positives_per_process(len(positives), labels.device)

        logits = self.head.classify(
            pyramid, towers, shape_deltas, torch.arange(len(labels), device=labels.device)
        ).float()
        targets = torch.zeros_like(logits)
        targets[positives, gt_classes[index[positives]]] = 1
        loss = sigmoid_focal_loss(logits[counted], targets[counted], self.class_alpha, self.class_gamma)
        losses["loss_cls"] = loss.sum() / normalizer

        deltas = self.head.regress(pyramid, towers, shape_deltas, positives).float()
        encoded = self.box_coder.encode(anchors.flatten(0, 1)[positives], torch.cat(gt_boxes)[index[positives]])
        losses["loss_box_reg"] = smooth_l1_loss(deltas - encoded, self.smooth_l1_beta).sum() / normalizer
        return losses
