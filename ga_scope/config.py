"""The configuration keys of this project, on top of detectron2's. Both engines read them."""

from .data.coco import DatasetError


def add_ga_scope_config(cfg):
    """Adds ``MODEL.GUIDED_ANCHORING`` and a few keys beside detectron2's own to a ``CfgNode``, in place."""
    CN = type(cfg)

    # Datasets of the user: a list of [name, annotation file, image folder]; the names go into
    # DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.REGISTER = []

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
    return cfg


# The part of MODEL that holds NUM_CLASSES, by META_ARCHITECTURE. Models that are not here know no classes.
CLASSES_UNDER = {"GeneralizedRCNN": "ROI_HEADS"}


def check_num_classes(cfg, dataset: str, categories: int):
    """Class numbers and the size of the last layer must agree, or training fails far from the cause."""
    part = CLASSES_UNDER.get(cfg.MODEL.META_ARCHITECTURE)
    if part is not None and cfg.MODEL[part].NUM_CLASSES != categories:
        raise DatasetError(
            f"MODEL.{part}.NUM_CLASSES: expected {categories}, the categories of {dataset}, "
            f"got {cfg.MODEL[part].NUM_CLASSES}"
        )


def guided_anchor_rpn_arguments(cfg) -> dict:
    """The arguments of :class:`ga_scope.modeling.guided_anchoring.GuidedAnchorRPN` (without ``head``, ``strides``)."""
    from .modeling.box_coding import BoxCoder
    from .modeling.guided_anchoring import AnchorShapes, LocationSelection, LocationTargets, ShapeTargets

    ga, rpn = cfg.MODEL.GUIDED_ANCHORING, cfg.MODEL.RPN
    return {
        "shapes": AnchorShapes(ga.SIGMA, ga.SHAPE_STD),
        "selection": LocationSelection(ga.LOCATION.THRESHOLD, ga.LOCATION.TOPK_TEST),
        "training_selection": LocationSelection(ga.LOCATION.THRESHOLD, rpn.PRE_NMS_TOPK_TRAIN),
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
        "box_coder": BoxCoder(rpn.BBOX_REG_WEIGHTS),
        "iou_thresholds": rpn.IOU_THRESHOLDS,
        "per_image": rpn.BATCH_SIZE_PER_IMAGE,
        "positive_fraction": rpn.POSITIVE_FRACTION,
        "focal_alpha": ga.LOCATION.FOCAL_LOSS_ALPHA,
        "focal_gamma": ga.LOCATION.FOCAL_LOSS_GAMMA,
        "outside_weight": ga.LOCATION.OUTSIDE_WEIGHT,
        "low_quality_iou": ga.LOW_QUALITY_IOU,
        "shape_beta": ga.SHAPE.SMOOTH_L1_BETA,
        "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        "loss_weights": {
            "location": ga.LOCATION.LOSS_WEIGHT,
            "shape": ga.SHAPE.LOSS_WEIGHT,
            "objectness": rpn.LOSS_WEIGHT,
            "box": rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        },
        "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        "nms_thresh": rpn.NMS_THRESH,
        "min_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        # GA-RPN alone makes no use of proposals while it trains.
        "proposals_in_training": cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork",
    }
