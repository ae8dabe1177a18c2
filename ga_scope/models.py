"""The framework-free models that a configuration describes, for both engines."""

from .config import ConfigError, check_values
from .modeling.box_coding import BoxCoder
from .modeling.guided_anchoring import (
    AnchorShapes,
    FixedShapes,
    GuidedAnchorHead,
    GuidedAnchorRetinaHead,
    GuidedAnchorRetinaNet,
    GuidedAnchorRPN,
    LocationSelection,
    LocationTargets,
    ShapeTargets,
)
from .modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets
from .modeling.staged_rpn import BOX_LOSSES, OBJECTNESS_LOSSES, StagedRPN, StagedRPNHead

# What these models have of detectron2's choices, and the values of their own keys. Others are errors, not ignored.
GENERATION_VALUES = {
    "MODEL.GUIDED_ANCHORING.SHAPE.MODE": ("sampled", "exact"),
    "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS": ("shape", "features", "none"),
}
RPN_VALUES = {
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.CONV_DIMS": ([-1],),
    "MODEL.RPN.BOUNDARY_THRESH": (-1,),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
}
STAGED_RPN_VALUES = {
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0.0,),
    "MODEL.STAGED_RPN.STAGES": (1, 2),
    "MODEL.STAGED_RPN.OBJECTNESS_LOSS": OBJECTNESS_LOSSES,
    "MODEL.STAGED_RPN.BOX_LOSS": BOX_LOSSES,
}
RETINANET_VALUES = {
    "MODEL.GUIDED_ANCHORING.CONV": (False,),  # the towers are its convolutions
    "MODEL.GUIDED_ANCHORING.LOCATION.ENABLED": (True,),
    "MODEL.GUIDED_ANCHORING.SHAPE.ENABLED": (True,),
    "MODEL.RETINANET.NORM": ("", "GN"),
    "MODEL.RETINANET.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
}
SCOPENET_VALUES = {
    "MODEL.SCOPENET.NORM": ("", "GN"),
    "MODEL.SCOPENET.BINS.TARGETS": ("one_hot", "soft"),
    "MODEL.SCOPENET.RESCORE": ("none", "mean", "distribution"),
    "MODEL.SCOPENET.LOSS.BOX": ("iou", "giou", "diou"),
}


def _generation_arguments(cfg, levels: int) -> dict:
    """The arguments of :class:`ga_scope.modeling.guided_anchoring.AnchorGeneration` (without ``head``, ``strides``)."""
    check_values(cfg, GENERATION_VALUES)
    ga = cfg.MODEL.GUIDED_ANCHORING
    if not 0 <= ga.LOCATION.THRESHOLD <= 1:
        raise ConfigError(
            f"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD: expected a probability, got {ga.LOCATION.THRESHOLD}"
        )
    if ga.LOCATION.TOPK_TEST < 0:
        raise ConfigError(
            "MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST: expected 0 (no limit) or a positive number, got "
            f"{ga.LOCATION.TOPK_TEST}"
        )
    if ga.SHAPE.ENABLED:
        shapes = AnchorShapes(ga.SIGMA, ga.SHAPE_STD, ga.SHAPE.PREDICT_CENTER)
    else:
        sizes, ratios = (per_level(cfg.MODEL.ANCHOR_GENERATOR, key, levels) for key in ("SIZES", "ASPECT_RATIOS"))
        shapes = FixedShapes.of(sizes, ratios)
    return {
        "shapes": shapes,
        "selection": LocationSelection(ga.LOCATION.THRESHOLD, ga.LOCATION.TOPK_TEST),
        "location_targets": LocationTargets(ga.LOCATION.CENTER_RATIO, ga.LOCATION.IGNORE_RATIO, ga.SIGMA),
        "shape_targets": ShapeTargets(
            ga.SHAPE.MODE,
            ga.SIGMA,
            ga.SHAPE.SCALES,
            ga.SHAPE.RATIOS,
            ga.SHAPE.SIZE_RANGE,
            ga.SHAPE.IOU_THRESHOLDS,
            ga.SHAPE.LOW_QUALITY_IOU,
            ga.SHAPE.BATCH_SIZE_PER_IMAGE,
            ga.SHAPE.POSITIVE_FRACTION,
        ),
        "cell_offset": ga.CELL_OFFSET,
        "focal_alpha": ga.LOCATION.FOCAL_LOSS_ALPHA,
        "focal_gamma": ga.LOCATION.FOCAL_LOSS_GAMMA,
        "outside_weight": ga.LOCATION.OUTSIDE_WEIGHT,
        "shape_beta": ga.SHAPE.SMOOTH_L1_BETA,
        "location_weight": ga.LOCATION.LOSS_WEIGHT,
        "shape_weight": ga.SHAPE.LOSS_WEIGHT,
    }


def _rpn_arguments(cfg) -> dict:
    """What every region proposal network takes from MODEL.RPN."""
    check_values(cfg, RPN_VALUES)
    rpn = cfg.MODEL.RPN
    return {
        "box_coder": BoxCoder(rpn.BBOX_REG_WEIGHTS),
        "iou_thresholds": rpn.IOU_THRESHOLDS,
        "per_image": rpn.BATCH_SIZE_PER_IMAGE,
        "positive_fraction": rpn.POSITIVE_FRACTION,
        "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        "objectness_weight": rpn.LOSS_WEIGHT,
        "box_weight": rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        "nms_thresh": rpn.NMS_THRESH,
        "min_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
    }


def build_guided_anchor_rpn(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRPN` of a configuration."""
    ga, rpn = cfg.MODEL.GUIDED_ANCHORING, cfg.MODEL.RPN
    if not ga.SHAPE.ENABLED and ga.ADAPTION.OFFSETS == "shape":
        raise ConfigError(
            "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS: expected 'features' or 'none' where SHAPE.ENABLED is False, "
            "got 'shape'"
        )
    generation = _generation_arguments(cfg, len(strides))
    shapes = generation["shapes"]
    head = GuidedAnchorHead(
        channels,
        ga.CONV,
        ga.ADAPTION.OFFSET_GROUPS,
        offsets=ga.ADAPTION.OFFSETS,
        location=ga.LOCATION.ENABLED,
        shape_columns=shapes.columns,
        anchors_per_location=shapes.per_location,
    )
    return GuidedAnchorRPN(
        head,
        strides,
        training_selection=LocationSelection(ga.LOCATION.THRESHOLD, rpn.PRE_NMS_TOPK_TRAIN),
        low_quality_iou=ga.LOW_QUALITY_IOU,
        # GA-RPN alone makes no use of proposals while it trains.
        proposals_in_training=cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork",
        **_rpn_arguments(cfg),
        **generation,
    )


def build_staged_rpn(cfg, channels: int, strides, before_fpn=()):
    """The :class:`ga_scope.modeling.staged_rpn.StagedRPN` of a configuration.

    ``before_fpn`` are the widths of the features MODEL.STAGED_RPN.BEFORE_FPN.
    """
    check_values(cfg, STAGED_RPN_VALUES)
    staged = cfg.MODEL.STAGED_RPN
    sizes, ratios = (per_level(cfg.MODEL.ANCHOR_GENERATOR, key, len(strides)) for key in ("SIZES", "ASPECT_RATIOS"))
    shapes = FixedShapes.of(sizes, ratios)
    if before_fpn and staged.STAGES != 2:
        raise ConfigError(f"MODEL.STAGED_RPN.STAGES: expected 2 with BEFORE_FPN, got {staged.STAGES}")
    return StagedRPN(
        StagedRPNHead(channels, shapes.per_location, staged.STAGES, before_fpn),
        strides,
        shapes,
        objectness_loss=staged.OBJECTNESS_LOSS,
        box_loss=staged.BOX_LOSS,
        **_rpn_arguments(cfg),
    )


def build_guided_anchor_retinanet(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRetinaNet` of a configuration."""
    check_values(cfg, RETINANET_VALUES, " (GuidedAnchoringRetinaNet)")
    ga, retina = cfg.MODEL.GUIDED_ANCHORING, cfg.MODEL.RETINANET
    generation = _generation_arguments(cfg, len(strides))
    head = GuidedAnchorRetinaHead(
        channels,
        retina.NUM_CLASSES,
        retina.NUM_CONVS,
        ga.ADAPTION.OFFSET_GROUPS,
        norm=retina.NORM,
        offsets=ga.ADAPTION.OFFSETS,
        shape_columns=generation["shapes"].columns,
        prior=retina.PRIOR_PROB,
    )
    return GuidedAnchorRetinaNet(
        head,
        strides,
        box_coder=BoxCoder(retina.BBOX_REG_WEIGHTS),
        iou_thresholds=retina.IOU_THRESHOLDS,
        low_quality_iou=ga.LOW_QUALITY_IOU,
        class_alpha=retina.FOCAL_LOSS_ALPHA,
        class_gamma=retina.FOCAL_LOSS_GAMMA,
        smooth_l1_beta=retina.SMOOTH_L1_LOSS_BETA,
        score_thresh=retina.SCORE_THRESH_TEST,
        topk_candidates=retina.TOPK_CANDIDATES_TEST,
        nms_thresh=retina.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        **generation,
    )


def per_level(node, key: str, levels: int) -> list:
    """``node[key]`` (of MODEL.ANCHOR_GENERATOR) with an entry per level; one entry serves all."""
    values = list(node[key])
    if len(values) == 1:
        values *= levels
    if len(values) != levels:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.{key}: expected 1 or {levels} entries, one per level, got {len(values)}"
        )
    return values


def build_scope_detector(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.scope.ScopeDetector` of a configuration.

    Raises:
        ConfigError: naming the key of a value that there is not.
    """
    check_values(cfg, SCOPENET_VALUES)
    scope = cfg.MODEL.SCOPENET
    if len(scope.TARGETS.RANGES) != len(strides) - 1:
        raise ConfigError(
            f"MODEL.SCOPENET.TARGETS.RANGES: expected {len(strides) - 1} limits between the {len(strides)} levels of "
            f"IN_FEATURES, got {len(scope.TARGETS.RANGES)}"
        )
    if scope.BINS.NUM < 1 or scope.BINS.SIZE <= 0:
        raise ConfigError(
            f"MODEL.SCOPENET.BINS.NUM, .SIZE: expected at least 1 bin of a size above 0, got {scope.BINS.NUM}, "
            f"{scope.BINS.SIZE}"
        )
    bins = ScopeBins(scope.BINS.NUM, scope.BINS.SIZE)
    head = ScopeHead(
        channels,
        scope.NUM_CLASSES,
        bins,
        convs=scope.NUM_CONVS,
        norm=scope.NORM,
        uncertainty=scope.BINS.UNCERTAINTY,
        prior=scope.PRIOR_PROB,
    )
    return ScopeDetector(
        head,
        strides,
        targets=ScopeTargets(scope.TARGETS.RANGES, scope.TARGETS.CENTER_RADII),
        rescore=scope.RESCORE != "none",
        quality=DistributionQuality(bins.count) if scope.RESCORE == "distribution" else None,
        soft_bins=scope.BINS.TARGETS == "soft",
        box_loss=scope.LOSS.BOX,
        loss_weights={
            "bins": scope.LOSS.BIN_WEIGHT,
            "boxes": scope.LOSS.BOX_WEIGHT,
            "quality": scope.LOSS.QUALITY_WEIGHT,
        },
        focal_alpha=scope.LOSS.FOCAL_ALPHA,
        focal_gamma=scope.LOSS.FOCAL_GAMMA,
        score_thresh=scope.SCORE_THRESH_TEST,
        topk=scope.TOPK_CANDIDATES_TEST,
        nms_thresh=scope.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
