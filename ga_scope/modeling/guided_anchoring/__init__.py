"""Guided Anchoring (Wang et al., CVPR 2019): anchors where objects are, of the shape that they have."""

from .anchors import AnchorShapes
from .head import FeatureAdaption, GuidedAnchorHead
from .rpn import GuidedAnchorRPN
from .selection import LocationSelection
from .targets import LocationTargets, ShapeTargets

__all__ = [
    "AnchorShapes",
    "FeatureAdaption",
    "GuidedAnchorHead",
    "GuidedAnchorRPN",
    "LocationSelection",
    "LocationTargets",
    "ShapeTargets",
]
