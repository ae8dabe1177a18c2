"""GA-RetinaNet as a detectron2 meta-architecture."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone

from ...modeling.guided_anchoring import GuidedAnchorRetinaNet
from ...models import build_guided_anchor_retinanet
from .one_stage import OneStageDetector, channels_and_strides


@META_ARCH_REGISTRY.register()
class GuidedAnchoringRetinaNet(OneStageDetector):
    """RetinaNet with guided anchors in place of its nine per location.

    Keys: ``MODEL.GUIDED_ANCHORING`` (:func:`ga_scope.config.add_ga_scope_config`) and ``MODEL.RETINANET``.
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, in_features: list[str], detector: GuidedAnchorRetinaNet, pixel_mean, pixel_std
    ):
        super().__init__(backbone, in_features, detector, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "in_features": cfg.MODEL.RETINANET.IN_FEATURES,
            "detector": build_guided_anchor_retinanet(cfg, *channels_and_strides(cfg, "RETINANET", backbone)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
