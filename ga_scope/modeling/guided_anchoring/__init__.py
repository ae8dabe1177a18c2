"""Guided Anchoring (Wang et al., CVPR 2019): anchors where objects are, of the shape that they have."""

from .adaption import FeatureAdaption
from .anchors import AnchorShapes, FixedShapes
from .generation import AnchorGeneration
from .head import GuidedAnchorHead
from .retinanet import GuidedAnchorRetinaHead, GuidedAnchorRetinaNet
from .rpn import GuidedAnchorRPN
from .selection import EveryLocation, LocationSelection
from .targets import LocationTargets, ShapeTargets

__all__ = [
    "AnchorGeneration",
    "AnchorShapes",
    "EveryLocation",
    "FeatureAdaption",
    "FixedShapes",
    "GuidedAnchorHead",
    "GuidedAnchorRPN",
    "GuidedAnchorRetinaHead",
    "GuidedAnchorRetinaNet",
    "LocationSelection",
    "LocationTargets",
    "ShapeTargets",
]
