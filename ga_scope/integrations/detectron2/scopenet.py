"""ScopeNet as a detectron2 meta-architecture, and its backbone."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from ...modeling.scope import ScopeDetector
from ...models import build_scope_detector
from .one_stage import OneStageDetector, channels_and_strides


@BACKBONE_REGISTRY.register()
def build_scopenet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """As detectron2's ``build_retinanet_resnet_fpn_backbone``, but P6 is made from P5 (FCOS; Table 4)."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, "p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@META_ARCH_REGISTRY.register()
class ScopeNet(OneStageDetector):
    """A backbone and :class:`ga_scope.modeling.scope.ScopeDetector` on some of its features.

    Keys: ``MODEL.SCOPENET`` (:func:`ga_scope.config.add_ga_scope_config`).
    """

    @configurable
    def __init__(self, *, backbone: Backbone, in_features: list[str], detector: ScopeDetector, pixel_mean, pixel_std):
        super().__init__(backbone, in_features, detector, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "in_features": cfg.MODEL.SCOPENET.IN_FEATURES,
            "detector": build_scope_detector(cfg, *channels_and_strides(cfg, "SCOPENET", backbone)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
