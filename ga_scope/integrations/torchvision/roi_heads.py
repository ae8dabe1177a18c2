"""torchvision's ROI heads under detectron2's settings, with the project's streaming matcher."""

import torch
import torch.nn.functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align
from torchvision.ops.poolers import LevelMapper

from ...modeling.losses import smooth_l1_loss
from ...ops import iou_match
from .backbone import STRIDES


class AlignedPooler(torch.nn.Module):
    """ROIAlign without the half-pixel shift (detectron2's ROIAlignV2), each box on the level of its size.

    torchvision's MultiScaleRoIAlign has no such mode.
    """

    def __init__(self, in_features, resolution, sampling_ratio):
        super().__init__()
        self.in_features = in_features
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        strides = [STRIDES[name] for name in in_features]
        first, last = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
        self.level_of = LevelMapper(first, last, eps=1e-8)

    def forward(self, features, boxes, image_shapes):
        levels = self.level_of(boxes)
        image = torch.cat([torch.full((len(b), 1), float(i), device=b.device) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], 1)
        first = features[self.in_features[0]]
        # In float32: bfloat16 would round a box's corners to one, two or four pixels.
        pooled = first.new_zeros(len(rois), first.shape[1], self.resolution, self.resolution, dtype=rois.dtype)
        for level, name in enumerate(self.in_features):
            chosen = (levels == level).nonzero()[:, 0]
            part = roi_align(
                features[name].to(rois.dtype),
                rois[chosen],
                self.resolution,
                1 / STRIDES[name],
                self.sampling_ratio,
                aligned=True,
            )
            pooled = pooled.index_put((chosen,), part)
        return pooled.to(first.dtype)


class FastRCNNHeads(RoIHeads):
    """Fast R-CNN's classification and regression of proposals.

    Labels are torchvision's (0 is the background). Losses are detectron2's: cross entropy over the sample,
    and smooth L1 with ``smooth_l1_beta`` divided by the size of the sample.
    """

    def __init__(self, smooth_l1_beta, box_loss_weight, proposals_per_image, **kwargs):
        super().__init__(**kwargs)
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.proposals_per_image = proposals_per_image

    def forward(self, features, proposals, image_shapes, targets=None):
        """Detections per image in inference, losses in training."""
        if self.proposals_per_image:
            proposals = [p[: self.proposals_per_image] for p in proposals]
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        labels, regression_targets = torch.cat(labels), torch.cat(regression_targets)
        positive = (labels > 0).nonzero()[:, 0]
        chosen = deltas.unflatten(1, (-1, 4))[positive, labels[positive]]
        box = smooth_l1_loss(chosen - regression_targets[positive], self.smooth_l1_beta).sum()
        losses = {
            "loss_cls": F.cross_entropy(logits, labels) if len(labels) else logits.sum() * 0,
            "loss_box_reg": self.box_loss_weight * box / max(len(labels), 1),
        }
        return [], losses

    def assign_targets_to_proposals(self, proposals, gt_boxes, gt_labels):
        """Box index and label of every proposal; no matrix of overlaps, whatever the number of boxes."""
        match = iou_match(proposals, gt_boxes)
        counts = [len(p) for p in proposals]
        first, indices, labels = 0, [], []
        for index, iou, of_image in zip(match.index.split(counts), match.iou.split(counts), gt_labels):
            index = (index - first).clamp(min=0)
            first += len(of_image)
            foreground = iou >= self.proposal_matcher.high_threshold
            labels.append(torch.where(foreground, of_image[index], 0) if len(of_image) else torch.zeros_like(index))
            indices.append(index)
        return indices, labels

    def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
        """Boxes, scores and labels per image, by detectron2's rules: predictions that are not finite are
        dropped before NMS, empty boxes after it. (torchvision drops boxes thinner than 0.01 px, and before.)"""
        counts = [len(p) for p in proposals]
        decoded = self.box_coder.decode(box_regression, proposals).view(*class_logits.shape, 4).split(counts)
        probabilities = class_logits.softmax(1).split(counts)
        found = []
        for boxes, scores, shape in zip(decoded, probabilities, image_shapes):
            finite = boxes.flatten(1).isfinite().all(1) & scores.isfinite().all(1)
            boxes, scores = clip_boxes_to_image(boxes[finite], shape), scores[finite]
            rows, classes = (scores[:, 1:] > self.score_thresh).nonzero(as_tuple=True)
            labels = classes + 1
            boxes, scores = boxes[rows, labels], scores[rows, labels]
            kept = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(1)]
            found.append((boxes[kept], scores[kept], labels[kept]))
        return tuple(zip(*found))


def build_roi_heads(cfg, channels: int) -> FastRCNNHeads:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    high_quality = heads.NAME == "GuidedAnchoringROIHeads"
    threshold = heads.IOU_THRESHOLDS[0]
    roi_heads = FastRCNNHeads(
        smooth_l1_beta=box.SMOOTH_L1_BETA,
        box_loss_weight=box.BBOX_REG_LOSS_WEIGHT,
        proposals_per_image=heads.PROPOSALS_PER_IMAGE if high_quality else 0,
        box_roi_pool=AlignedPooler(heads.IN_FEATURES, box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO),
        box_head=TwoMLPHead(channels * box.POOLER_RESOLUTION**2, box.FC_DIM),
        box_predictor=FastRCNNPredictor(box.FC_DIM, heads.NUM_CLASSES + 1),
        fg_iou_thresh=threshold,
        bg_iou_thresh=threshold,
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        bbox_reg_weights=box.BBOX_REG_WEIGHTS,
        score_thresh=heads.SCORE_THRESH_TEST,
        nms_thresh=heads.NMS_THRESH_TEST,
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    _initialise(roi_heads)
    return roi_heads


def _initialise(roi_heads: FastRCNNHeads):
    """As detectron2: Xavier for the hidden layers, small normal weights for the last. torchvision's default learns
    the classes more slowly."""
    head, predictor = roi_heads.box_head, roi_heads.box_predictor
    for layer in (head.fc6, head.fc7):
        torch.nn.init.kaiming_uniform_(layer.weight, a=1)
    torch.nn.init.normal_(predictor.cls_score.weight, std=0.01)
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for layer in (head.fc6, head.fc7, predictor.cls_score, predictor.bbox_pred):
        torch.nn.init.zeros_(layer.bias)
