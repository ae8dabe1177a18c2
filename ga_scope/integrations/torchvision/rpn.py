"""Proposal generators: torchvision's RPN, and Guided Anchoring's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ...modeling.guided_anchoring import FixedShapes, GuidedAnchorRPN
from ...modeling.losses import smooth_l1_loss
from ...modeling.proposals import Proposals
from ...modeling.pyramid import Pyramid
from ...modeling.staged_rpn import StagedRPN
from ...models import build_guided_anchor_rpn, build_staged_rpn, per_level
from .backbone import STRIDES, stage_channels

# A proposal generator here is called with the features {name: (N, C, H, W)}, the padded images' ImageList,
# and the targets; it returns Proposals per image and losses. Its anchors_per_image and locations_per_image
# speak of the last call.


class Anchors(nn.Module):
    """detectron2's anchors in torchvision's RPN.

    torchvision's own have rounded sides, lie a stride of image size / map size apart (61 px on the p6 of an image of
    800 px, which is 64), and have the type of the features: bfloat16 rounds 200 px to a whole pixel.
    """

    def __init__(self, strides, shapes: FixedShapes):
        super().__init__()
        self.strides, self.shapes = strides, shapes

    def num_anchors_per_location(self):
        return [self.shapes.per_location] * len(self.strides)

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """(P * K, 4) per image, on the cells' corners (MODEL.ANCHOR_GENERATOR.OFFSET 0)."""
        pyramid = Pyramid.of(features, self.strides, cell_offset=0.0)
        like = features[0].new_zeros(pyramid.images, pyramid.locations, 0)
        return list(self.shapes.decode(pyramid, like))


class Head(RPNHead):
    """torchvision's head, float32 logits and deltas under autocast, too."""

    def forward(self, x):
        return tuple([f.to(_single(f.dtype)) for f in maps] for maps in super().forward(x))


def _single(dtype):
    return torch.promote_types(dtype, torch.float32)


class SlidingWindowRPN(RegionProposalNetwork):
    """torchvision's RPN with detectron2's losses: L1 below ``smooth_l1_beta``, divided by the sample's full size."""

    def __init__(self, in_features, smooth_l1_beta, loss_weight, box_loss_weight, box_weights, min_size, **kwargs):
        super().__init__(**kwargs)
        self.in_features = in_features
        self.smooth_l1_beta = smooth_l1_beta
        self.loss_weight, self.box_loss_weight = loss_weight, box_loss_weight
        self.box_coder.weights = tuple(box_weights)
        # Sides must exceed it; torchvision keeps those that are equal, empty boxes too.
        self.min_size = float(torch.tensor(float(min_size)).nextafter(torch.tensor(torch.inf)))
        self.anchors_per_image, self.locations_per_image = [], 0

    def forward(self, images, features, targets=None):
        features = {name: features[name] for name in self.in_features}
        boxes, losses = super().forward(images, features, targets)
        self.locations_per_image = sum(f.shape[2] * f.shape[3] for f in features.values())
        per_location = self.anchor_generator.num_anchors_per_location()[0]
        self.anchors_per_image = [self.locations_per_image * per_location] * len(boxes)
        names = {"loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_loc"}
        return boxes, {names[name]: loss for name, loss in losses.items()}

    def filter_proposals(self, proposals, objectness, image_shapes, num_anchors_per_level):
        boxes, scores = super().filter_proposals(proposals, objectness, image_shapes, num_anchors_per_level)
        return [Proposals(b, s.logit()) for b, s in zip(boxes, scores)], scores

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        positive, negative = (torch.where(torch.cat(sampled, 0))[0] for sampled in self.fg_bg_sampler(labels))
        normalizer = self.fg_bg_sampler.batch_size_per_image * len(labels)
        sampled, targets = torch.cat([positive, negative]), torch.cat(labels)
        logits = objectness.flatten()[sampled]
        classification = F.binary_cross_entropy_with_logits(logits, targets[sampled], reduction="sum")
        difference = pred_bbox_deltas[positive] - torch.cat(regression_targets)[positive]
        box = smooth_l1_loss(difference, self.smooth_l1_beta).sum()
        weight = self.loss_weight / normalizer
        return classification * weight, box * weight * self.box_loss_weight


class NamedFeatures(nn.Module):
    """A framework-free generator, :class:`GuidedAnchorRPN` or :class:`StagedRPN`, on named features."""

    def __init__(self, in_features, rpn: GuidedAnchorRPN | StagedRPN, before_fpn=()):
        super().__init__()
        self.in_features = in_features
        self.before_fpn = before_fpn
        self.rpn = rpn

    @property
    def anchors_per_image(self):
        return self.rpn.anchors_per_image

    @property
    def locations_per_image(self):
        return self.rpn.locations_per_image

    def forward(self, images: ImageList, features, targets=None):
        gt_boxes = None if targets is None else [t["boxes"] for t in targets]
        levels = [features[name] for name in self.in_features]
        more = {"before_fpn": [features[name] for name in self.before_fpn]} if self.before_fpn else {}
        return self.rpn(levels, images.image_sizes, gt_boxes, **more)


def build_proposal_generator(cfg, channels: int) -> nn.Module:
    rpn = cfg.MODEL.RPN
    strides = [STRIDES[name] for name in rpn.IN_FEATURES]
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "GuidedAnchoringRPN":
        return NamedFeatures(rpn.IN_FEATURES, build_guided_anchor_rpn(cfg, channels, strides))
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "StagedRPN":
        names = cfg.MODEL.STAGED_RPN.BEFORE_FPN
        widths = [stage_channels(cfg)[name] for name in names]
        return NamedFeatures(rpn.IN_FEATURES, build_staged_rpn(cfg, channels, strides, widths), names)
    levels = len(rpn.IN_FEATURES)
    sizes, ratios = (per_level(cfg.MODEL.ANCHOR_GENERATOR, key, levels) for key in ("SIZES", "ASPECT_RATIOS"))
    anchors = Anchors(strides, FixedShapes.of(sizes, ratios))
    negative, positive = rpn.IOU_THRESHOLDS
    return SlidingWindowRPN(
        in_features=rpn.IN_FEATURES,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
        loss_weight=rpn.LOSS_WEIGHT,
        box_loss_weight=rpn.BBOX_REG_LOSS_WEIGHT,
        box_weights=rpn.BBOX_REG_WEIGHTS,
        min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        anchor_generator=anchors,
        head=Head(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=positive,
        bg_iou_thresh=negative,
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        pre_nms_top_n={"training": rpn.PRE_NMS_TOPK_TRAIN, "testing": rpn.PRE_NMS_TOPK_TEST},
        post_nms_top_n={"training": rpn.POST_NMS_TOPK_TRAIN, "testing": rpn.POST_NMS_TOPK_TEST},
        nms_thresh=rpn.NMS_THRESH,
    )
