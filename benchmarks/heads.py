"""The proposal heads that ga_head and training_step compare: GA-RPN, torchvision's RPN, detectron2's RPN.

All take the features of five levels, keep 1000 boxes per level before NMS (2000 in training) and 1000 after it. The
RPNs have 3 anchors per location.
"""

from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ga_scope.modeling.guided_anchoring import GuidedAnchorHead, GuidedAnchorRPN, LocationSelection
from ga_scope.modeling.pyramid import Pyramid

from . import harness

CHANNELS = harness.CHANNELS
PRE_NMS, POST_NMS = (2000, 1000), (1000, 1000)  # training, inference


def guided_rpn(conv, threshold=0.01):
    return GuidedAnchorRPN(
        GuidedAnchorHead(CHANNELS, conv=conv),
        harness.STRIDES,
        selection=LocationSelection(threshold),
        pre_nms_topk=PRE_NMS,
        post_nms_topk=POST_NMS,
    )


def activate(rpn, features, fraction):
    """Sets the threshold at which a fraction of the locations is active, and returns the fraction that is."""
    logits = rpn.head.generate(Pyramid.of(features, rpn.strides), features)[1].detach().float().flatten()
    threshold = logits.sort(descending=True).values[round(fraction * len(logits)) - 1].sigmoid().item()
    rpn.selection = LocationSelection(threshold)
    results = rpn(features, [harness.IMAGE] * features[0].shape[0])
    return results.anchors.sum().item() / len(logits)


class TorchvisionRPN:
    """torchvision's RegionProposalNetwork, called as ours is."""

    def __init__(self):
        sizes = tuple((8 * stride,) for stride in harness.STRIDES)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.module = RegionProposalNetwork(
            anchors,
            RPNHead(CHANNELS, 3),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": PRE_NMS[0], "testing": PRE_NMS[1]},
            post_nms_top_n={"training": POST_NMS[0], "testing": POST_NMS[1]},
            nms_thresh=0.7,
        )

    def __call__(self, features, gt_boxes=None):
        images = ImageList(features[0].new_zeros(len(features[0]), 3, 1, 1).expand(-1, -1, *harness.IMAGE), None)
        images.image_sizes = [harness.IMAGE] * len(features[0])
        targets = None if gt_boxes is None else [{"boxes": b} for b in gt_boxes]
        return self.module(images, {str(i): f for i, f in enumerate(features)}, targets)


class Detectron2RPN:
    """detectron2's RPN with its FPN settings, called as ours is. Raises ImportError without detectron2."""

    def __init__(self):
        from detectron2.config import get_cfg
        from detectron2.layers import ShapeSpec
        from detectron2.modeling.proposal_generator import RPN

        cfg = get_cfg()
        names = [f"p{level}" for level in range(2, 7)]
        cfg.MODEL.RPN.IN_FEATURES = names
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in harness.STRIDES]
        cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = PRE_NMS
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = POST_NMS
        shapes = {n: ShapeSpec(channels=CHANNELS, stride=s) for n, s in zip(names, harness.STRIDES)}
        self.names, self.module = names, RPN(cfg, shapes)

    def __call__(self, features, gt_boxes=None):
        from detectron2.structures import Boxes, ImageList, Instances
        from detectron2.utils.events import EventStorage

        images = len(features[0])
        batch = ImageList(features[0].new_zeros(images, 3, 1, 1), [harness.IMAGE] * images)
        truth = gt_boxes and [Instances(harness.IMAGE, gt_boxes=Boxes(b)) for b in gt_boxes]
        with EventStorage():  # its losses log into one
            return self.module(batch, dict(zip(self.names, features)), truth)


def peers(training):
    """The RPNs that can be built here, by name."""
    found = {"torchvision RPN": TorchvisionRPN()}
    try:
        found["detectron2 RPN"] = Detectron2RPN()
    except ImportError:
        print("detectron2 RPN: detectron2 is not installed")
    for peer in found.values():
        peer.module.train(training)
    return found
