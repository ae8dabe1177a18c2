"""RetinaNet (Lin et al. 2017b) under detectron2's settings: the baseline of GA-RetinaNet and ScopeNet."""

import torch
from torch import Tensor, nn

from ..ops import iou_match
from .box_coding import BoxCoder
from .guided_anchoring.anchors import FixedShapes
from .inference import best_classes, select_detections
from .layers import initialise, tower
from .locations import LocationList
from .losses import positives_per_process, shares, sigmoid_focal_loss, smooth_l1_loss
from .pyramid import Pyramid
from .results import Results, size_tensor
from .sampling import IGNORED, POSITIVE, label_matches
from .targets import Targets, needed

# Shapes: N images, P locations of an image, K anchors per location.


class RetinaNetHead(nn.Module):
    """Two towers; classes and box deltas of the anchors at every location. Parameters have detectron2's names.

    Args:
        channels: of the features.
        num_classes: of the objects.
        anchors_per_location: K.
        num_convs, norm: of each :func:`tower <ga_scope.modeling.layers.tower>`.
        prior: probability of every class at the start, as the focal loss wants it (Lin et al. 2017, 4.1).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors_per_location: int,
        num_convs: int = 4,
        norm: str = "",
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes = num_classes
        # detectron2's have biases before a norm, too.
        self.cls_subnet = tower(channels, num_convs, norm, bias=True)
        self.bbox_subnet = tower(channels, num_convs, norm, bias=True)
        self.cls_score = nn.Conv2d(channels, anchors_per_location * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_location * 4, 3, padding=1)
        initialise(self)
        nn.init.constant_(self.cls_score.bias, torch.tensor(prior).logit().item())

    def forward(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(N, P * K, classes) and (N, P * K, 4)."""
        logits = pyramid.flatten([self.cls_score(self.cls_subnet(f)) for f in features])
        deltas = pyramid.flatten([self.bbox_pred(self.bbox_subnet(f)) for f in features])
        return logits.unflatten(2, (-1, self.num_classes)).flatten(1, 2), deltas.unflatten(2, (-1, 4)).flatten(1, 2)


class RetinaNet(nn.Module):
    """Features of a pyramid to detections, and the losses in training.

    Args:
        head: the network.
        strides: of the features' levels.
        shapes: of the anchors.
        box_coder: of the deltas from anchor to box.
        iou_thresholds: (negative below, positive from) of the anchors' IoU with a box. A box's best anchors are
            positive, too.
        class_alpha, class_gamma: of the classes' focal loss.
        smooth_l1_beta: of the box loss.
        score_thresh, topk_candidates, nms_thresh, detections_per_image: of the inference.
    """

    def __init__(
        self,
        head: RetinaNetHead,
        strides,
        shapes: FixedShapes,
        *,
        box_coder: BoxCoder | None = None,
        iou_thresholds=(0.4, 0.5),
        class_alpha: float = 0.25,
        class_gamma: float = 2.0,
        smooth_l1_beta: float = 0.1,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
    ):
        super().__init__()
        self.head = head
        self.strides = tuple(strides)
        self.shapes = shapes
        self.box_coder = box_coder or BoxCoder()
        self.iou_thresholds = tuple(iou_thresholds)
        self.class_alpha, self.class_gamma = class_alpha, class_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.score_thresh, self.topk_candidates = score_thresh, topk_candidates
        self.nms_thresh, self.detections_per_image = nms_thresh, detections_per_image
        self.positives = 100.0  # their moving average, which the losses are divided by, as in detectron2

    def forward(
        self, features: list[Tensor], image_sizes, targets: Targets | None = None, *, maps: bool = False
    ) -> Results:
        """In inference the detections of every image, in training the losses.

        Args:
            features: (N, channels, H_l, W_l) per level.
            image_sizes: (height, width) of every image without its padding, a list or a tensor (N, 2).
            targets: boxes and classes of every image, in training.
            maps: of which a sliding-window detector has none.
        """
        pyramid = Pyramid.of(features, self.strides, cell_offset=0.0)  # anchors on the cells' corners, as detectron2
        logits, deltas = self.head(pyramid, features)
        anchors = self.shapes.decode(pyramid, features[0].new_zeros(pyramid.images, pyramid.locations, 0))
        if self.training:
            return Results(self._losses(anchors, logits.float(), deltas.float(), needed(targets, classes=True)))
        with torch.no_grad():
            return self._inference(pyramid, anchors, logits, deltas, size_tensor(image_sizes, logits.device))

    def _losses(self, anchors, logits, deltas, targets):
        match = iou_match(list(anchors), targets.boxes, low_quality_from=0.0, ignore_boxes=targets.ignore)
        labels, index = label_matches(match, *self.iou_thresholds, low_quality_from=0.0, keep_best_box=True)
        positives, counted = (labels == POSITIVE).nonzero()[:, 0], (labels != IGNORED).nonzero()[:, 0]
        logits, deltas = logits.flatten(0, 1), deltas.flatten(0, 1)
        classes = torch.zeros_like(logits)
        classes[positives, torch.cat(targets.classes)[index[positives]]] = 1
        classification = sigmoid_focal_loss(logits[counted], classes[counted], self.class_alpha, self.class_gamma)
        boxes = torch.cat(targets.boxes)[index[positives]]
        encoded = self.box_coder.encode(anchors.flatten(0, 1)[positives], boxes)
        box = smooth_l1_loss(deltas[positives] - encoded, self.smooth_l1_beta)
        # Of the whole batch, however many processes it is divided among.
        count = positives_per_process(len(positives), logits.device) * shares()
        self.positives = 0.9 * self.positives + 0.1 * count
        divisor = self.positives / shares()
        return {"loss_cls": classification.sum() / divisor, "loss_box_reg": box.sum() / divisor}

    def _inference(self, pyramid, anchors, logits, deltas, sizes):
        everywhere = LocationList.all(pyramid, logits.device).repeat(self.shapes.per_location)
        rows, scores, classes = best_classes(everywhere, logits.flatten(0, 1), self.topk_candidates, self.score_thresh)
        detections = select_detections(
            self.box_coder.decode(anchors.flatten(0, 1)[rows], deltas.flatten(0, 1)[rows].float()),
            scores,
            classes,
            everywhere.places[rows],
            sizes,
            nms_thresh=self.nms_thresh,
            most=self.detections_per_image,
            clip_first=False,
        )
        counts = torch.full((pyramid.images,), anchors.shape[1], device=logits.device)
        return Results(detections=detections, anchors=counts, locations=pyramid.locations)
