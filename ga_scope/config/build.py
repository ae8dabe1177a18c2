"""The framework-free models that a configuration describes, for both engines.

The configuration has been checked (:mod:`ga_scope.config.schema`).
"""

from ..errors import ConfigError
from ..modeling.box_coding import BoxCoder
from ..modeling.guided_anchoring import (
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
from ..modeling.retinanet import RetinaNet, RetinaNetHead
from ..modeling.roi_heads import BoxHead, BoxPredictor, FastRCNNHeads, Pooler
from ..modeling.rpn import RPN, RPNHead
from ..modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets
from ..modeling.timm_stages import TimmStages
from .rules import per_level


def build_timm_stages(cfg, kind: type[TimmStages] = TimmStages) -> TimmStages:
    """MODEL.TIMM's network.

    Raises:
        ConfigError: timm is not installed, or the model is not there or has no such features.
    """
    keys, first = cfg.MODEL.TIMM, int(cfg.MODEL.FPN.IN_FEATURES[0].removeprefix("res"))
    try:
        return kind(keys.NAME, first, keys.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"MODEL.TIMM.NAME: {error}") from None


def _generation_arguments(cfg, levels: int) -> dict:
    """The arguments of :class:`ga_scope.modeling.guided_anchoring.AnchorGeneration` (without ``head``, ``strides``)."""
    ga = cfg.MODEL.GUIDED_ANCHORING
    if ga.SHAPE.ENABLED:
        shapes = AnchorShapes(ga.SIGMA, ga.SHAPE_STD, ga.SHAPE.PREDICT_CENTER)
    else:
        shapes = fixed_shapes(cfg, levels)
    return {
        "shapes": shapes,
        "selection": LocationSelection(ga.LOCATION.THRESHOLD, ga.LOCATION.TOPK_TEST),
        "location_targets": LocationTargets(
            ga.LOCATION.CENTER_RATIO, ga.LOCATION.IGNORE_RATIO, ga.SIGMA, ga.LOCATION.RULE
        ),
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
        "shape_divisor": ga.SHAPE.LOSS_DIVISOR,
        "location_weight": ga.LOCATION.LOSS_WEIGHT,
        "shape_weight": ga.SHAPE.LOSS_WEIGHT,
    }


def _rpn_arguments(cfg) -> dict:
    """What every region proposal network takes from MODEL.RPN."""
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


def build_rpn(cfg, channels: int, strides, before_fpn=()) -> RPN:
    """Sliding-window anchors: MODEL.PROPOSAL_GENERATOR.NAME RPN or StagedRPN.

    ``before_fpn`` are the widths of the features MODEL.STAGED_RPN.BEFORE_FPN.
    """
    staged, shapes = cfg.MODEL.STAGED_RPN, fixed_shapes(cfg, len(strides))
    return RPN(
        RPNHead(channels, shapes.per_location, staged.STAGES, before_fpn),
        strides,
        shapes,
        objectness_loss=staged.OBJECTNESS_LOSS,
        box_loss=staged.BOX_LOSS,
        **_rpn_arguments(cfg),
    )


def build_retinanet(cfg, channels: int, strides) -> RetinaNet:
    keys, shapes = cfg.MODEL.RETINANET, fixed_shapes(cfg, len(strides))
    head = RetinaNetHead(
        channels, keys.NUM_CLASSES, shapes.per_location, keys.NUM_CONVS, keys.NORM, keys.PRIOR_PROB
    )  # fmt: skip
    return RetinaNet(head, strides, shapes, **_retinanet_arguments(cfg))


def _retinanet_arguments(cfg) -> dict:
    """What both RetinaNets take from MODEL.RETINANET."""
    keys = cfg.MODEL.RETINANET
    return {
        "box_coder": BoxCoder(keys.BBOX_REG_WEIGHTS),
        "iou_thresholds": keys.IOU_THRESHOLDS,
        "class_alpha": keys.FOCAL_LOSS_ALPHA,
        "class_gamma": keys.FOCAL_LOSS_GAMMA,
        "smooth_l1_beta": keys.SMOOTH_L1_LOSS_BETA,
        "score_thresh": keys.SCORE_THRESH_TEST,
        "topk_candidates": keys.TOPK_CANDIDATES_TEST,
        "nms_thresh": keys.NMS_THRESH_TEST,
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def fixed_shapes(cfg, levels: int) -> FixedShapes:
    """Of MODEL.ANCHOR_GENERATOR."""
    return FixedShapes.of(*(per_level(cfg, key, levels) for key in ("SIZES", "ASPECT_RATIOS")))


def build_roi_heads(cfg, channels: int, strides) -> FastRCNNHeads:
    """The built-in engine's MODEL.ROI_HEADS; ``strides`` of its IN_FEATURES."""
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    return FastRCNNHeads(
        Pooler(strides, box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO),
        BoxHead(channels * box.POOLER_RESOLUTION**2, box.FC_DIM, box.NUM_FC),
        BoxPredictor(box.FC_DIM, heads.NUM_CLASSES),
        num_classes=heads.NUM_CLASSES,
        box_coder=BoxCoder(box.BBOX_REG_WEIGHTS),
        positive_from=heads.IOU_THRESHOLDS[0],
        per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        proposals_per_image=heads.PROPOSALS_PER_IMAGE if heads.NAME == "GuidedAnchoringROIHeads" else 0,
        smooth_l1_beta=box.SMOOTH_L1_BETA,
        box_weight=box.BBOX_REG_LOSS_WEIGHT,
        score_thresh=heads.SCORE_THRESH_TEST,
        nms_thresh=heads.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def build_guided_anchor_retinanet(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRetinaNet` of a configuration."""
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
        low_quality_iou=ga.LOW_QUALITY_IOU,
        **_retinanet_arguments(cfg),
        **generation,
    )


def build_scope_detector(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.scope.ScopeDetector` of a configuration."""
    scope = cfg.MODEL.SCOPENET
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
