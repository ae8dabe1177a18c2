"""Guided Anchoring and ScopeNet in detectron2. Importing this package registers its components:

proposal generator
    ``GuidedAnchoringRPN`` (``MODEL.PROPOSAL_GENERATOR.NAME``)
ROI heads
    ``GuidedAnchoringROIHeads``, ``GuidedAnchoringCascadeROIHeads`` (``MODEL.ROI_HEADS.NAME``)
meta-architecture
    ``ScopeNet`` (``MODEL.META_ARCHITECTURE``)
backbone
    ``build_scopenet_resnet_fpn_backbone`` (``MODEL.BACKBONE.NAME``)

All are ``@configurable``: a yaml with :func:`add_ga_scope_config`, or a LazyConfig, builds them.
"""

from ...config import add_ga_scope_config
from .roi_heads import GuidedAnchoringCascadeROIHeads, GuidedAnchoringROIHeads
from .rpn import GuidedAnchoringRPN
from .scopenet import ScopeNet, build_scopenet_resnet_fpn_backbone

__all__ = [
    "GuidedAnchoringCascadeROIHeads",
    "GuidedAnchoringROIHeads",
    "GuidedAnchoringRPN",
    "ScopeNet",
    "add_ga_scope_config",
    "build_scopenet_resnet_fpn_backbone",
]
