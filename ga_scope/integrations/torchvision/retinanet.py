"""RetinaNet and GA-RetinaNet in the built-in engine."""

import torch
from torch import Tensor, nn

from ...modeling.box_coding import BoxCoder
from ...modeling.detections import Detections, select_candidates, select_detections
from ...modeling.guided_anchoring.anchors import FixedShapes
from ...modeling.layers import initialise, tower
from ...modeling.losses import sigmoid_focal_loss, smooth_l1_loss
from ...modeling.pyramid import Pyramid
from ...modeling.sampling import IGNORED, POSITIVE, label_matches
from ...models import build_guided_anchor_retinanet, per_level
from ...ops import iou_match
from .backbone import STRIDES, build_backbone
from .detector import OneStageDetector


class RetinaNetHead(nn.Module):
    """Class logits and box deltas of every anchor, with detectron2's keys and the names of its parameters.

    (torchvision's head always has four convolutions, and no biases before a norm where detectron2 has them.)
    """

    def __init__(self, channels: int, anchors_per_location: int, keys):
        super().__init__()
        self.num_classes = keys.NUM_CLASSES
        self.cls_subnet = tower(channels, keys.NUM_CONVS, keys.NORM, bias=True)
        self.bbox_subnet = tower(channels, keys.NUM_CONVS, keys.NORM, bias=True)
        self.cls_score = nn.Conv2d(channels, anchors_per_location * keys.NUM_CLASSES, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_location * 4, 3, padding=1)
        initialise(self)
        nn.init.constant_(self.cls_score.bias, torch.tensor(keys.PRIOR_PROB).logit().item())

    def forward(self, pyramid: Pyramid, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(N, P * K, classes) and (N, P * K, 4), P locations with K anchors."""
        logits = pyramid.flatten([self.cls_score(self.cls_subnet(f)) for f in features])
        deltas = pyramid.flatten([self.bbox_pred(self.bbox_subnet(f)) for f in features])
        return logits.unflatten(2, (-1, self.num_classes)).flatten(1, 2), deltas.unflatten(2, (-1, 4)).flatten(1, 2)


class RetinaNet(nn.Module):
    """RetinaNet under detectron2's settings, with the project's streaming matcher.

    Features to detections in inference, to losses in training (Lin et al. 2017b): the baseline of GA-RetinaNet.
    """

    def __init__(self, head: RetinaNetHead, strides, shapes: FixedShapes, settings, detections_per_image: int):
        super().__init__()
        self.head = head
        self.strides = tuple(strides)
        self.shapes = shapes
        self.settings = settings  # MODEL.RETINANET
        self.detections_per_image = detections_per_image
        self.box_coder = BoxCoder(settings.BBOX_REG_WEIGHTS)
        self.anchors_per_image, self.locations_per_image = [], 0
        self.positives = 100.0  # their moving average, which the losses are divided by, as in detectron2

    def forward(self, features: list[Tensor], image_sizes, gt_boxes=None, gt_classes=None):
        # detectron2's anchors lie on the cells' corners, MODEL.ANCHOR_GENERATOR.OFFSET 0.
        pyramid = Pyramid.of(features, self.strides, cell_offset=0.0)
        logits, deltas = self.head(pyramid, features)
        anchors = self.shapes.decode(pyramid, features[0].new_zeros(pyramid.images, pyramid.locations, 0))
        self.anchors_per_image = [anchors.shape[1]] * pyramid.images
        self.locations_per_image = pyramid.locations
        if self.training:
            gt_boxes = [boxes.float() for boxes in gt_boxes]
            return [], self._losses(anchors, logits.float(), deltas.float(), gt_boxes, torch.cat(gt_classes))
        levels = pyramid.per_level(range(len(self.strides)), anchors.device, torch.int64)
        return self._detections(
            anchors, logits, deltas, levels.repeat_interleave(self.shapes.per_location), image_sizes
        ), {}

    def _losses(self, anchors, logits, deltas, gt_boxes, gt_classes):
        keys = self.settings
        labels, index = label_matches(iou_match(list(anchors), gt_boxes), *keys.IOU_THRESHOLDS, low_quality_from=0.0)
        positives, counted = (labels == POSITIVE).nonzero()[:, 0], (labels != IGNORED).nonzero()[:, 0]
        logits, deltas = logits.flatten(0, 1), deltas.flatten(0, 1)
        targets = torch.zeros_like(logits)
        targets[positives, gt_classes[index[positives]]] = 1
        classification = sigmoid_focal_loss(
            logits[counted], targets[counted], keys.FOCAL_LOSS_ALPHA, keys.FOCAL_LOSS_GAMMA
        )
        encoded = self.box_coder.encode(anchors.flatten(0, 1)[positives], torch.cat(gt_boxes)[index[positives]])
        box = smooth_l1_loss(deltas[positives] - encoded, keys.SMOOTH_L1_LOSS_BETA)
        self.positives = 0.9 * self.positives + 0.1 * max(len(positives), 1)
        return {"loss_cls": classification.sum() / self.positives, "loss_box_reg": box.sum() / self.positives}

    def _detections(self, anchors, logits, deltas, levels, image_sizes) -> list[Detections]:
        keys, found = self.settings, []
        for boxes, scores, shifts, size in zip(anchors, logits.float().sigmoid(), deltas.float(), image_sizes):
            rows, classes = select_candidates(scores, levels, keys.SCORE_THRESH_TEST, keys.TOPK_CANDIDATES_TEST)
            boxes = self.box_coder.decode(boxes[rows], shifts[rows])
            found.append(
                select_detections(
                    boxes, scores[rows, classes], classes, size, keys.NMS_THRESH_TEST, self.detections_per_image
                )
            )
        return found


def build_retinanet(cfg) -> OneStageDetector:
    backbone = build_backbone(cfg)
    keys = cfg.MODEL.RETINANET
    sizes, ratios = (
        per_level(cfg.MODEL.ANCHOR_GENERATOR, key, len(keys.IN_FEATURES)) for key in ("SIZES", "ASPECT_RATIOS")
    )
    shapes = FixedShapes.of(sizes, ratios)
    head = RetinaNetHead(backbone.out_channels, shapes.per_location, keys)
    strides = [STRIDES[name] for name in keys.IN_FEATURES]
    detector = RetinaNet(head, strides, shapes, keys, cfg.TEST.DETECTIONS_PER_IMAGE)
    return OneStageDetector(backbone, keys.IN_FEATURES, detector, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


def build_guided_anchoring_retinanet(cfg) -> OneStageDetector:
    backbone = build_backbone(cfg)
    in_features = cfg.MODEL.RETINANET.IN_FEATURES
    detector = build_guided_anchor_retinanet(cfg, backbone.out_channels, [STRIDES[name] for name in in_features])
    return OneStageDetector(backbone, in_features, detector, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
