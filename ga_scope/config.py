"""The configuration keys of this project, on top of detectron2's. Both engines read them."""

from .data.coco import DatasetError


class ConfigError(ValueError):
    """A configuration that cannot be honoured; the message names the key or the file."""


def check_values(cfg, allowed: dict, hint: str = ""):
    """Raises ConfigError for a key whose value is not among those listed: {key: values}."""
    for key, values in allowed.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value not in values:
            raise ConfigError(f"{key}: expected {', '.join(map(repr, values))}, got {value!r}{hint}")


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
