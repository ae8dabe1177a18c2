"""GA-RPN and Table 1's baselines as detectron2 proposal generators."""

from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ...config.build import build_guided_anchor_rpn, build_rpn
from ...errors import ConfigError
from ...modeling.results import Results
from .meta_arch import channels_and_strides
from .results import as_proposals, targets_of


class _Generator(nn.Module):
    """A framework-free generator of :mod:`ga_scope.modeling` on named features."""

    def __init__(self, in_features: list[str], rpn: nn.Module, before_fpn=()):
        super().__init__()
        self.in_features = in_features
        self.before_fpn = before_fpn
        self.rpn = rpn

    def results(self, features: dict, image_sizes, targets=None, maps: bool = False) -> Results:
        more = {"maps": True} if maps else {}
        if self.before_fpn:
            more["before_fpn"] = [features[name] for name in self.before_fpn]
        return self.rpn([features[name] for name in self.in_features], image_sizes, targets, **more)

    def forward(self, images: ImageList, features: dict, gt_instances: list[Instances] | None = None):
        """detectron2's interface: proposals as ``Instances`` per image, and the losses in training."""
        found = self.results(features, images.image_sizes, targets_of(gt_instances) if self.training else None)
        if found.proposals is None:  # of a proposal network in training, which has no use for them
            return [], found.losses
        if self.training:
            get_event_storage().put_scalar("anchors_per_image", found.anchors.float().mean().item())
        return as_proposals(found.proposals, images.image_sizes), found.losses


@PROPOSAL_GENERATOR_REGISTRY.register()
class GuidedAnchoringRPN(_Generator):
    """Guided Anchoring's proposals for any detectron2 R-CNN.

    Keys: ``MODEL.GUIDED_ANCHORING`` (:mod:`ga_scope.config.keys`) and ``MODEL.RPN``.
    """

    @configurable
    def __init__(self, *, in_features: list[str], rpn: nn.Module):
        super().__init__(in_features, rpn)

    @classmethod
    def from_config(cls, cfg, input_shape):
        names = cfg.MODEL.RPN.IN_FEATURES
        where = channels_and_strides("MODEL.RPN.IN_FEATURES", names, input_shape)
        return {"in_features": names, "rpn": build_guided_anchor_rpn(cfg, *where)}


@PROPOSAL_GENERATOR_REGISTRY.register()
class StagedRPN(_Generator):
    """RPN with one or two stages and the losses of Table 1's baselines.

    Keys: ``MODEL.STAGED_RPN``, ``MODEL.RPN`` and ``MODEL.ANCHOR_GENERATOR``.
    """

    @configurable
    def __init__(self, *, in_features: list[str], rpn: nn.Module, before_fpn: list[str] = ()):
        super().__init__(in_features, rpn, before_fpn)

    @classmethod
    def from_config(cls, cfg, input_shape):
        names, before = cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.STAGED_RPN.BEFORE_FPN
        missing = [name for name in before if name not in input_shape]
        if missing:
            raise ConfigError(
                f"MODEL.STAGED_RPN.BEFORE_FPN: expected features of the backbone ({', '.join(input_shape)}), "
                f"got {missing}; MODEL.BACKBONE.NAME build_resnet_fpn_backbone_with_stages has them"
            )
        where = channels_and_strides("MODEL.RPN.IN_FEATURES", names, input_shape)
        widths = [input_shape[name].channels for name in before]
        return {"in_features": names, "rpn": build_rpn(cfg, *where, widths), "before_fpn": before}
