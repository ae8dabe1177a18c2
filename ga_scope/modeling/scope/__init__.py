"""Scope Head (Zhan et al., *Scope Head for Accurate Localization in Object Detection*): dependent 1-D anchors."""

from .bins import ScopeBins
from .detector import ScopeDetector
from .head import ScopeHead, ScopePredictions
from .quality import DistributionQuality
from .targets import LocationBoxes, ScopeTargets, ignored_locations

__all__ = [
    "DistributionQuality",
    "LocationBoxes",
    "ScopeBins",
    "ScopeDetector",
    "ScopeHead",
    "ScopePredictions",
    "ScopeTargets",
    "ignored_locations",
]
