"""Guided Anchoring and ScopeNet in detectron2. Importing this package registers its components:

proposal generator
    ``GuidedAnchoringRPN``, ``StagedRPN`` (``MODEL.PROPOSAL_GENERATOR.NAME``)
ROI heads
    ``GuidedAnchoringROIHeads``, ``GuidedAnchoringCascadeROIHeads`` (``MODEL.ROI_HEADS.NAME``)
meta-architecture
    ``GuidedAnchoringRetinaNet``, ``ScopeNet`` (``MODEL.META_ARCHITECTURE``)
backbone
    ``build_resnet_fpn_backbone_with_stages``, ``build_scopenet_resnet_fpn_backbone``, ``build_timm_fpn_backbone``
    (``MODEL.BACKBONE.NAME``)

All are ``@configurable``: a yaml with :func:`add_ga_scope_config`, or a LazyConfig, builds them.
"""

from ...config import add_ga_scope_config
from .backbones import (
    build_resnet_fpn_backbone_with_stages,
    build_scopenet_resnet_fpn_backbone,
    build_timm_fpn_backbone,
)
from .meta_arch import GuidedAnchoringRetinaNet, ScopeNet
from .roi_heads import GuidedAnchoringCascadeROIHeads, GuidedAnchoringROIHeads
from .rpn import GuidedAnchoringRPN, StagedRPN

__all__ = [
    "GuidedAnchoringCascadeROIHeads",
    "GuidedAnchoringROIHeads",
    "GuidedAnchoringRPN",
    "GuidedAnchoringRetinaNet",
    "ScopeNet",
    "StagedRPN",
    "add_ga_scope_config",
    "build_resnet_fpn_backbone_with_stages",
    "build_scopenet_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
]
