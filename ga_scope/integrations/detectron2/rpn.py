"""GA-RPN and Table 1's baselines as detectron2 proposal generators."""

from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ...config import ConfigError
from ...modeling import staged_rpn
from ...modeling.guided_anchoring import GuidedAnchorRPN
from ...modeling.proposals import Proposals
from ...models import build_guided_anchor_rpn, build_staged_rpn


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
        counts = self.rpn.anchors_per_image if self.training else []
        if counts:
            active = sum(counts) / len(counts)
            get_event_storage().put_scalar("guided_anchoring/active_per_image", active)
        return as_instances(proposals, images.image_sizes), losses


def as_instances(proposals: list[Proposals], image_sizes) -> list[Instances]:
    """Proposals in detectron2's form."""
    return [
        Instances(size, proposal_boxes=Boxes(found.boxes), objectness_logits=found.logits)
        for found, size in zip(proposals, image_sizes)
    ]


@PROPOSAL_GENERATOR_REGISTRY.register()
class StagedRPN(nn.Module):
    """RPN with one or two stages and the losses of Table 1's baselines.

    Keys: ``MODEL.STAGED_RPN``, ``MODEL.RPN`` and ``MODEL.ANCHOR_GENERATOR``.
    """

    @configurable
    def __init__(self, *, in_features: list[str], rpn: staged_rpn.StagedRPN, before_fpn: list[str] = ()):
        super().__init__()
        self.in_features = in_features
        self.before_fpn = before_fpn
        self.rpn = rpn

    @classmethod
    def from_config(cls, cfg, input_shape):
        in_features, before_fpn = cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.STAGED_RPN.BEFORE_FPN
        missing = [name for name in before_fpn if name not in input_shape]
        if missing:
            raise ConfigError(
                f"MODEL.STAGED_RPN.BEFORE_FPN: expected features of the backbone ({', '.join(input_shape)}), "
                f"got {missing}; MODEL.BACKBONE.NAME build_resnet_fpn_backbone_with_stages has them"
            )
        shapes = [input_shape[name] for name in in_features]
        widths = [input_shape[name].channels for name in before_fpn]
        rpn = build_staged_rpn(cfg, shapes[0].channels, [shape.stride for shape in shapes], widths)
        return {"in_features": in_features, "rpn": rpn, "before_fpn": before_fpn}

    def forward(self, images: ImageList, features: dict, gt_instances: list[Instances] | None = None):
        """detectron2's interface, as :meth:`GuidedAnchoringRPN.forward`."""
        levels = [features[name] for name in self.in_features]
        gt_boxes = None if gt_instances is None else [x.gt_boxes.tensor for x in gt_instances]
        before_fpn = [features[name] for name in self.before_fpn]
        proposals, losses = self.rpn(levels, images.image_sizes, gt_boxes, before_fpn)
        return as_instances(proposals, images.image_sizes), losses


class FPNWithStages(FPN):
    """An FPN whose output holds the backbone's own features as well, before the FPN."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bottom_up.register_forward_hook(self._take_stages)

    def _take_stages(self, module, inputs, output):
        self._stages = output

    def forward(self, x):
        return super().forward(x) | self._stages

    def output_shape(self):
        return super().output_shape() | self.bottom_up.output_shape()


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_with_stages(cfg, input_shape) -> FPNWithStages:
    """detectron2's ``build_resnet_fpn_backbone`` as :class:`FPNWithStages`."""
    return FPNWithStages(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
