"""The configuration keys of this project, on top of detectron2's, and the models that they describe.

Both engines read them.
"""

from .data.coco import DatasetError


class ConfigError(ValueError):
    """A configuration that cannot be honoured; the message names the key or the file."""


def add_ga_scope_config(cfg):
    """Adds ``MODEL.GUIDED_ANCHORING``, ``MODEL.SCOPENET`` and keys beside detectron2's own, in place."""
    CN = type(cfg)

    # Datasets of the user: a list of [name, annotation file, image folder]; the names go into
    # DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.REGISTER = []

    # Proposal files (MODEL.LOAD_PROPOSALS, DATASETS.PROPOSAL_FILES_*) are .npz of tools/dump_proposals.py. Other
    # files are pickles, which can run any code; True reads them all the same.
    cfg.DATASETS.TRUST_PROPOSAL_PICKLES = False

    # SGD (detectron2's) or ADAMW.
    cfg.SOLVER.OPTIMIZER = "SGD"

    # Proposals that ROI heads for high-quality proposals (GuidedAnchoringROIHeads) take per image, best
    # first: the paper's Table 7 has 300. 0: all that come.
    cfg.MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE = 300

    # ---- GA-RPN: MODEL.PROPOSAL_GENERATOR.NAME: GuidedAnchoringRPN -------------------------------------
    # MODEL.RPN applies to the guided anchors: IN_FEATURES, IOU_THRESHOLDS, BATCH_SIZE_PER_IMAGE,
    # POSITIVE_FRACTION, BBOX_REG_WEIGHTS, SMOOTH_L1_BETA, LOSS_WEIGHT, BBOX_REG_LOSS_WEIGHT, NMS_THRESH and
    # the four TOPKs.
    ga = cfg.MODEL.GUIDED_ANCHORING = CN()
    # A 3x3 convolution before all branches. The paper's Figure 1 has none, its release has one.
    ga.CONV = False
    # Eq. 2: w = SIGMA * stride * exp(SHAPE_STD * dw). The release has SHAPE_STD 0.14.
    ga.SIGMA = 8.0
    ga.SHAPE_STD = 1.0
    # Cell (y, x) stands for ((x + CELL_OFFSET) * stride, ...): 1/2 in section 3.1, 0 in the release.
    ga.CELL_OFFSET = 0.5
    # A box's best guided anchor is positive from this IoU on, whatever MODEL.RPN.IOU_THRESHOLDS say.
    ga.LOW_QUALITY_IOU = 0.3

    ga.LOCATION = CN()
    # False (Table 4, without L.): anchors at every location.
    ga.LOCATION.ENABLED = True
    # A location is active from this probability on (epsilon_L). Table 5: 0.05 keeps 6.5 % at no loss.
    ga.LOCATION.THRESHOLD = 0.01
    # The best locations per level and image that may be active; 0: no limit. In training the limit is
    # MODEL.RPN.PRE_NMS_TOPK_TRAIN.
    ga.LOCATION.TOPK_TEST = 0
    # sigma_1 and sigma_2 of section 3.4.
    ga.LOCATION.CENTER_RATIO = 0.2
    ga.LOCATION.IGNORE_RATIO = 0.5
    ga.LOCATION.FOCAL_LOSS_ALPHA = 0.25
    ga.LOCATION.FOCAL_LOSS_GAMMA = 2.0
    # Weight of the locations outside all regions, which are by far the most. The paper is silent, the release has 0.1.
    ga.LOCATION.OUTSIDE_WEIGHT = 0.1
    ga.LOCATION.LOSS_WEIGHT = 1.0  # lambda_1

    ga.SHAPE = CN()
    # False (Table 4, without S.): the fixed anchors of MODEL.ANCHOR_GENERATOR; ADAPTION.OFFSETS must not be "shape".
    ga.SHAPE.ENABLED = True
    # True (Table 6, without C.A.): anchors may also move off the centres of their locations.
    ga.SHAPE.PREDICT_CENTER = False
    # vIoU (Eq. 5): "sampled" over SCALES x RATIOS times SIGMA * stride, as the paper has it, or "exact"
    # over all sides within SIZE_RANGE times SIGMA * stride.
    ga.SHAPE.MODE = "sampled"
    ga.SHAPE.SCALES = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]
    ga.SHAPE.RATIOS = [0.5, 1.0, 2.0]
    ga.SHAPE.SIZE_RANGE = [0.7, 2.3]
    # vIoU thresholds: negative below, positive from.
    ga.SHAPE.IOU_THRESHOLDS = [0.3, 0.7]
    # A box's best location is positive from this vIoU on.
    ga.SHAPE.LOW_QUALITY_IOU = 0.3
    ga.SHAPE.BATCH_SIZE_PER_IMAGE = 256
    ga.SHAPE.POSITIVE_FRACTION = 0.5
    ga.SHAPE.SMOOTH_L1_BETA = 0.2
    ga.SHAPE.LOSS_WEIGHT = 0.1  # lambda_2

    ga.ADAPTION = CN()
    ga.ADAPTION.OFFSET_GROUPS = 4
    # Where the offsets of the 3x3 deformable convolution come from: "shape" (Eq. 3), "features" (4.3: not
    # guided by anchors), "none" (Table 4, without F.A.: an ordinary convolution).
    ga.ADAPTION.OFFSETS = "shape"

    # ---- Baselines of Table 1: MODEL.PROPOSAL_GENERATOR.NAME: StagedRPN ---------------------------------
    # MODEL.RPN and MODEL.ANCHOR_GENERATOR apply.
    staged = cfg.MODEL.STAGED_RPN = CN()
    # 2: "RPN + iterative", anchors regressed and classified twice.
    staged.STAGES = 1
    # Features before the FPN that the first of two stages reads: "RefineRPN". They come from MODEL.BACKBONE.NAME
    # build_resnet_fpn_backbone_with_stages.
    staged.BEFORE_FPN = []
    # "cross_entropy" over the sample, or "focal" over all anchors.
    staged.OBJECTNESS_LOSS = "cross_entropy"
    # "smooth_l1" of the deltas, or "bounded_iou" of the boxes.
    staged.BOX_LOSS = "smooth_l1"

    # ---- ScopeNet: MODEL.META_ARCHITECTURE: ScopeNet ----------------------------------------------------
    # Scope Head for Accurate Localization in Object Detection (Zhan et al.); sections and tables are its.
    # P6 and P7 from P5, as FCOS ("custom FPN" of Table 4): MODEL.BACKBONE.NAME build_scopenet_resnet_fpn_backbone;
    # from C5, as RetinaNet: build_retinanet_resnet_fpn_backbone.
    scope = cfg.MODEL.SCOPENET = CN()
    scope.NUM_CLASSES = 80
    scope.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # 3x3 convolutions of each of the two towers, and the norm after each: "" or "GN" (Table 4).
    scope.NUM_CONVS = 4
    scope.NORM = ""
    # Probability of every class at the start.
    scope.PRIOR_PROB = 0.01

    scope.BINS = CN()
    # N anchors per side; 1 is direct regression (section 4.1). Table 2: 1, 3, 5, 7.
    scope.BINS.NUM = 5
    # log2(b_{n+1} / b_n). Table 2: 0.75, 1, 1.25.
    scope.BINS.SIZE = 1.0
    # sigma^2 of Eq. 2 (Table 3).
    scope.BINS.UNCERTAINTY = True
    # "one_hot", or beyond the paper "soft": two neighbouring bins share the target, as in the distribution focal
    # loss (Generalized Focal Loss, Li et al. 2020, Eq. 6).
    scope.BINS.TARGETS = "one_hot"

    # A box's score is p_cls times: "none" 1; "mean" the mean over the sides of the largest bin probability (Eq. 3);
    # beyond the paper "distribution" an IoU predicted from the distributions' statistics (Generalized Focal
    # Loss V2, Li et al. 2021, 3.2).
    scope.RESCORE = "mean"

    scope.TARGETS = CN()
    # Section 3.2. A location learns a box if it is within this many strides of its centre: classification,
    # localization.
    scope.TARGETS.CENTER_RADII = [1.5, 2.0]
    # Pixels that separate the levels' ranges of the largest distance to a side.
    scope.TARGETS.RANGES = [64, 128, 256, 512]

    scope.LOSS = CN()
    scope.LOSS.FOCAL_ALPHA = 0.25
    scope.LOSS.FOCAL_GAMMA = 2.0
    # "iou" is -log IoU; beyond the paper "giou" (Rezatofighi et al. 2019) and "diou" (Zheng et al. 2020).
    scope.LOSS.BOX = "iou"
    scope.LOSS.BIN_WEIGHT = 0.5  # lambda_bin
    scope.LOSS.BOX_WEIGHT = 1.0  # lambda_loc
    scope.LOSS.QUALITY_WEIGHT = 1.0  # of RESCORE "distribution"

    # Of a class at a location, before NMS; the best candidates of each level and image; Table 4 has NMS at 0.5, 0.6.
    scope.SCORE_THRESH_TEST = 0.05
    scope.TOPK_CANDIDATES_TEST = 1000
    scope.NMS_THRESH_TEST = 0.5
    return cfg


# The part of MODEL that holds NUM_CLASSES, by META_ARCHITECTURE. Models that are not here know no classes.
CLASSES_UNDER = {
    "GeneralizedRCNN": "ROI_HEADS",
    "GuidedAnchoringRetinaNet": "RETINANET",
    "RetinaNet": "RETINANET",
    "ScopeNet": "SCOPENET",
}


def check_num_classes(cfg, dataset: str, categories: int):
    """Class numbers and the size of the last layer must agree, or training fails far from the cause."""
    part = CLASSES_UNDER.get(cfg.MODEL.META_ARCHITECTURE)
    if part is not None and cfg.MODEL[part].NUM_CLASSES != categories:
        raise DatasetError(
            f"MODEL.{part}.NUM_CLASSES: expected {categories}, the categories of {dataset}, "
            f"got {cfg.MODEL[part].NUM_CLASSES}"
        )


def _generation_arguments(cfg, levels: int) -> dict:
    """The arguments of :class:`ga_scope.modeling.guided_anchoring.AnchorGeneration` (without ``head``, ``strides``)."""
    from .modeling.guided_anchoring import AnchorShapes, FixedShapes, LocationSelection, LocationTargets, ShapeTargets

    ga = cfg.MODEL.GUIDED_ANCHORING
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


def build_guided_anchor_rpn(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRPN` of a configuration."""
    from .modeling.box_coding import BoxCoder
    from .modeling.guided_anchoring import GuidedAnchorHead, GuidedAnchorRPN, LocationSelection

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
        box_coder=BoxCoder(rpn.BBOX_REG_WEIGHTS),
        iou_thresholds=rpn.IOU_THRESHOLDS,
        low_quality_iou=ga.LOW_QUALITY_IOU,
        per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
        objectness_weight=rpn.LOSS_WEIGHT,
        box_weight=rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_thresh=rpn.NMS_THRESH,
        min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        # GA-RPN alone makes no use of proposals while it trains.
        proposals_in_training=cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork",
        **generation,
    )


def build_staged_rpn(cfg, channels: int, strides, before_fpn=()):
    """The :class:`ga_scope.modeling.staged_rpn.StagedRPN` of a configuration.

    ``before_fpn`` are the widths of the features MODEL.STAGED_RPN.BEFORE_FPN.
    """
    from .modeling.box_coding import BoxCoder
    from .modeling.guided_anchoring import FixedShapes
    from .modeling.staged_rpn import StagedRPN, StagedRPNHead

    rpn, staged = cfg.MODEL.RPN, cfg.MODEL.STAGED_RPN
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
        box_coder=BoxCoder(rpn.BBOX_REG_WEIGHTS),
        iou_thresholds=rpn.IOU_THRESHOLDS,
        per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
        objectness_weight=rpn.LOSS_WEIGHT,
        box_weight=rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_thresh=rpn.NMS_THRESH,
        min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
    )


def build_guided_anchor_retinanet(cfg, channels: int, strides):
    """The :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRetinaNet` of a configuration."""
    from .modeling.box_coding import BoxCoder
    from .modeling.guided_anchoring import GuidedAnchorRetinaHead, GuidedAnchorRetinaNet

    ga, retina = cfg.MODEL.GUIDED_ANCHORING, cfg.MODEL.RETINANET
    for key in ("LOCATION", "SHAPE"):
        if not ga[key].ENABLED:
            raise ConfigError(f"MODEL.GUIDED_ANCHORING.{key}.ENABLED: expected True for a RetinaNet, got False")
    generation = _generation_arguments(cfg, len(strides))
    head = GuidedAnchorRetinaHead(
        channels,
        retina.NUM_CLASSES,
        retina.NUM_CONVS,
        ga.ADAPTION.OFFSET_GROUPS,
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
    from .modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets

    scope = cfg.MODEL.SCOPENET
    for key, value, allowed in (
        ("NORM", scope.NORM, ("", "GN")),
        ("BINS.TARGETS", scope.BINS.TARGETS, ("one_hot", "soft")),
        ("RESCORE", scope.RESCORE, ("none", "mean", "distribution")),
        ("LOSS.BOX", scope.LOSS.BOX, ("iou", "giou", "diou")),
    ):
        if value not in allowed:
            raise ConfigError(f"MODEL.SCOPENET.{key}: expected {', '.join(map(repr, allowed))}, got {value!r}")
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
