"""Guided Anchoring in detectron2. Importing this package registers its components:

proposal generator
    ``GuidedAnchoringRPN``, ``StagedRPN`` (``MODEL.PROPOSAL_GENERATOR.NAME``)
backbone
    ``build_resnet_fpn_backbone_with_stages`` (``MODEL.BACKBONE.NAME``)
ROI heads
    ``GuidedAnchoringROIHeads``, ``GuidedAnchoringCascadeROIHeads`` (``MODEL.ROI_HEADS.NAME``)

meta-architecture
    ``GuidedAnchoringRetinaNet`` (``MODEL.META_ARCHITECTURE``)

All are ``@configurable``: a yaml with :func:`add_ga_scope_config`, or a LazyConfig, builds them.
"""

from ...config import add_ga_scope_config
from .retinanet import GuidedAnchoringRetinaNet
from .roi_heads import GuidedAnchoringCascadeROIHeads, GuidedAnchoringROIHeads
from .rpn import GuidedAnchoringRPN, StagedRPN

__all__ = [
    "GuidedAnchoringCascadeROIHeads",
    "GuidedAnchoringROIHeads",
    "GuidedAnchoringRPN",
    "GuidedAnchoringRetinaNet",
    "StagedRPN",
    "add_ga_scope_config",
]
