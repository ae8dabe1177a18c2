"""ScopeNet in the built-in engine."""

from ...models import build_scope_detector
from .backbone import STRIDES, build_backbone
from .detector import OneStageDetector


def build_scopenet(cfg) -> OneStageDetector:
    backbone = build_backbone(cfg)
    in_features = cfg.MODEL.SCOPENET.IN_FEATURES
    detector = build_scope_detector(cfg, backbone.out_channels, [STRIDES[name] for name in in_features])
    return OneStageDetector(backbone, in_features, detector, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
