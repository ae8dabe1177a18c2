"""Guided Anchoring in detectron2. Importing this package registers its components:

proposal generator
    ``GuidedAnchoringRPN`` (``MODEL.PROPOSAL_GENERATOR.NAME``)
ROI heads
    ``GuidedAnchoringROIHeads``, ``GuidedAnchoringCascadeROIHeads`` (``MODEL.ROI_HEADS.NAME``)

All are ``@configurable``: a yaml with :func:`add_ga_scope_config`, or a LazyConfig, builds them.
"""

from ...config import add_ga_scope_config
from .roi_heads import GuidedAnchoringCascadeROIHeads, GuidedAnchoringROIHeads
from .rpn import GuidedAnchoringRPN

__all__ = [
    "GuidedAnchoringCascadeROIHeads",
    "GuidedAnchoringROIHeads",
    "GuidedAnchoringRPN",
    "add_ga_scope_config",
]
