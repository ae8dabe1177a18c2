"""GA-RPN as a detectron2 proposal generator."""

from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ...config import build_guided_anchor_rpn
from ...modeling.guided_anchoring import GuidedAnchorRPN


@PROPOSAL_GENERATOR_REGISTRY.register()
class GuidedAnchoringRPN(nn.Module):
    """Guided Anchoring's proposals for any detectron2 R-CNN.

    Keys: ``MODEL.GUIDED_ANCHORING`` (:func:`ga_scope.config.add_ga_scope_config`) and ``MODEL.RPN``.
    """

    @configurable
    def __init__(self, *, in_features: list[str], rpn: GuidedAnchorRPN):
        super().__init__()
        self.in_features = in_features
        self.rpn = rpn

    @classmethod
    def from_config(cls, cfg, input_shape):
        in_features = cfg.MODEL.RPN.IN_FEATURES
        shapes = [input_shape[name] for name in in_features]
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1:
            raise ValueError(f"MODEL.RPN.IN_FEATURES: expected features of one width, got {sorted(channels)} channels")
        rpn = build_guided_anchor_rpn(cfg, channels.pop(), [shape.stride for shape in shapes])
        return {"in_features": in_features, "rpn": rpn}

    def forward(self, images: ImageList, features: dict, gt_instances: list[Instances] | None = None):
        """detectron2's interface: proposals as ``Instances`` per image, and the losses in training."""
        levels = [features[name] for name in self.in_features]
        gt_boxes = None if gt_instances is None else [x.gt_boxes.tensor for x in gt_instances]
        proposals, losses = self.rpn(levels, images.image_sizes, gt_boxes)
        if self.training and self.rpn.anchors_per_image:
            active = sum(self.rpn.anchors_per_image) / len(self.rpn.anchors_per_image)
            get_event_storage().put_scalar("guided_anchoring/active_per_image", active)
        instances = []
        for found, size in zip(proposals, images.image_sizes):
            item = Instances(size)
            item.proposal_boxes = Boxes(found.boxes)
            item.objectness_logits = found.logits
            instances.append(item)
        return instances, losses
