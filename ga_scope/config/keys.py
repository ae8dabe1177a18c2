"""Every key that this project reads: detectron2's, under their names and with their defaults, and its own.

A yaml so means the same to both engines. Sections, equations and tables are those of *Region Proposal by Guided
Anchoring*, under ``MODEL.SCOPENET`` those of *Scope Head for Accurate Localization in Object Detection*.
"""

import re

from .checks import Check, any_value, ascending, fraction, number, one_of, sequence, switch, text, whole
from .schema import Key, When, get

PRECOMPUTED = "PrecomputedProposals"  # detectron2's name of no generator: proposals come with the images

# What can be chosen here. Another value names a component that a user registered with detectron2, of which nothing is
# known: it may read any key.
RESNET_BACKBONES = (
    "build_resnet_fpn_backbone",
    "build_resnet_fpn_backbone_with_stages",
    "build_retinanet_resnet_fpn_backbone",
    "build_scopenet_resnet_fpn_backbone",
)
TIMM_BACKBONE = "build_timm_fpn_backbone"
CHOICES = {
    "MODEL.BACKBONE.NAME": (*RESNET_BACKBONES, TIMM_BACKBONE, "build_resnet_backbone"),
    "MODEL.META_ARCHITECTURE": (
        "GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "GuidedAnchoringRetinaNet", "ScopeNet",
    ),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "GuidedAnchoringRPN", "StagedRPN", PRECOMPUTED),
    "MODEL.ROI_HEADS.NAME": (
        "Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads", "GuidedAnchoringROIHeads",
        "GuidedAnchoringCascadeROIHeads",
    ),
}  # fmt: skip


def chosen(name: str, *values) -> When:
    known = CHOICES.get(name)
    said = " or ".join(map(str, values))
    return When(
        f"{name} {said}",
        lambda cfg, users: get(cfg, name) in values or (users and known is not None and get(cfg, name) not in known),
    )


def meta(*values) -> When:
    return chosen("MODEL.META_ARCHITECTURE", *values)


# ---- who reads what --------------------------------------------------------------------------------

RESNET = chosen("MODEL.BACKBONE.NAME", *RESNET_BACKBONES, "build_resnet_backbone")
TIMM = chosen("MODEL.BACKBONE.NAME", TIMM_BACKBONE)
RCNN = meta("GeneralizedRCNN")
PROPOSING = meta("GeneralizedRCNN", "ProposalNetwork")
RPNS = PROPOSING & chosen("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "StagedRPN", "GuidedAnchoringRPN")
STAGED = PROPOSING & chosen("MODEL.PROPOSAL_GENERATOR.NAME", "StagedRPN")
SLIDING_RPN = PROPOSING & chosen("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "StagedRPN")
GA_RPN = PROPOSING & chosen("MODEL.PROPOSAL_GENERATOR.NAME", "GuidedAnchoringRPN")
GA_RETINANET = meta("GuidedAnchoringRetinaNet")
GUIDED = GA_RPN | GA_RETINANET
RETINANETS = meta("RetinaNet", "GuidedAnchoringRetinaNet")
SCOPENET = meta("ScopeNet")
HIGH_QUALITY = RCNN & chosen(
    "MODEL.ROI_HEADS.NAME", "GuidedAnchoringROIHeads", "GuidedAnchoringCascadeROIHeads"
)  # fmt: skip
LOADED_PROPOSALS = chosen("MODEL.LOAD_PROPOSALS", True)
GA = "MODEL.GUIDED_ANCHORING."
LOCATED = GUIDED & chosen(GA + "LOCATION.ENABLED", True)
SHAPED = GUIDED & chosen(GA + "SHAPE.ENABLED", True)
SAMPLED_SHAPES = SHAPED & chosen(GA + "SHAPE.MODE", "sampled")
FIXED_ANCHORS = SLIDING_RPN | meta("RetinaNet") | (GA_RPN & chosen(GA + "SHAPE.ENABLED", False))
BINNED = SCOPENET & When(
    "MODEL.SCOPENET.BINS.NUM above 1", lambda cfg, users: (get(cfg, "MODEL.SCOPENET.BINS.NUM") or 0) > 1
)  # fmt: skip
IN_STEPS = chosen("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")
CROPPED = chosen("INPUT.CROP.ENABLED", True)
CLIPPED = chosen("SOLVER.CLIP_GRADIENTS.ENABLED", True)

# This project's parts, of keys that detectron2's read, too.
OUR_RPNS = chosen("MODEL.PROPOSAL_GENERATOR.NAME", "StagedRPN", "GuidedAnchoringRPN")
OUR_RETINANET = GA_RETINANET

# ---- values ----------------------------------------------------------------------------------------

features = sequence(text, least=1)
device = Check(
    "cpu, cuda, cuda:0 ..., mps or auto",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)),
)
weights4 = sequence(number(above=0), length=4)
loss_weight = number(0)
overlap = number(above=0, high=1)
thresholds = ascending(overlap, length=2)
RES_STAGES = ["res2", "res3", "res4", "res5"]
norm = one_of("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")


def section(prefix: str, *rows: tuple, when: When | None = None, own: When | None = None) -> list[Key]:
    """Keys of a part: (name, default, check, text, {further attributes of the key}) each."""
    keys = []
    for name, default, check, words, *more in rows:
        attributes = {"when": when, "own": own} | (more[0] if more else {})
        keys.append(Key(prefix + name, default, check, words, **attributes))
    return keys


W = {"weights": True}

KEYS = [
    # ---- runs ---------------------------------------------------------------------------------------
    *section(
        "",
        ("VERSION", 2, one_of(2), "Of detectron2's configurations."),
        ("OUTPUT_DIR", "./output", text, "Folder for checkpoints, logs and metrics."),
        ("SEED", -1, whole(-1), "Of weights and data; -1: another one in every run."),
    ),
    *section(
        "DATASETS.",
        ("REGISTER", [], sequence(any_value), "Datasets of your own: a list of [name, annotation file, image folder]."),
        ("TRAIN", (), sequence(text), "Names of the datasets to train on: COCO's, registered ones, detectron2's."),
        ("TEST", (), sequence(text), "Names of the datasets to evaluate on."),
        (
            "IGNORE_REGIONS",
            False,
            switch,
            "Crowd regions and annotations with \"ignore\": nothing inside them is a negative in training. False: they "
            "are left out, as detectron2 does.",
        ),
        ("PROPOSAL_FILES_TRAIN", (), sequence(text), "One .npz of tools/dump_proposals.py for each of TRAIN.",
         {"when": LOADED_PROPOSALS}),
        ("PROPOSAL_FILES_TEST", (), sequence(text), "One for each of TEST.", {"when": LOADED_PROPOSALS}),
        ("PRECOMPUTED_PROPOSAL_TOPK_TRAIN", 2000, whole(1), "Of a file's proposals, per image.",
         {"when": LOADED_PROPOSALS}),
        ("PRECOMPUTED_PROPOSAL_TOPK_TEST", 1000, whole(1), "Of a file's proposals, per image.",
         {"when": LOADED_PROPOSALS}),
    ),
    *section(
        "DATALOADER.",
        ("NUM_WORKERS", 4, whole(0), "Processes that read images; 0: the training itself does."),
        (
            "BAD_IMAGES",
            "error",
            one_of("error", "skip"),
            "An image that cannot be read ends a training; or the next takes its place, and it is named at the end.",
        ),
        ("MAX_BAD_IMAGES", 10, whole(0), "Of more of them the training ends.",
         {"when": chosen("DATALOADER.BAD_IMAGES", "skip")}),
        ("ASPECT_RATIO_GROUPING", True, switch, "Batches of images that are all wide or all tall."),
        ("FILTER_EMPTY_ANNOTATIONS", True, switch, "Images without objects are left out of training."),
    ),
    *section(
        "INPUT.",
        ("MIN_SIZE_TRAIN", (800,), sequence(whole(0), least=1), "Shorter side in pixels, one of these; 0: as it is."),
        ("MIN_SIZE_TRAIN_SAMPLING", "choice", one_of("choice", "range"), "One of the sizes, or any between two."),
        ("MAX_SIZE_TRAIN", 1333, whole(1), "The longer side's limit."),
        ("MIN_SIZE_TEST", 800, whole(0), "Shorter side in pixels; 0: as it is."),
        ("MAX_SIZE_TEST", 1333, whole(1), "The longer side's limit."),
        ("RANDOM_FLIP", "horizontal", one_of("horizontal", "vertical", "both", "none"),
         "With probability 1/2; both: each with 1/2."),
        ("CROP.ENABLED", False, switch, "Training sees a random part of the image, cut before it is resized."),
        ("CROP.TYPE", "relative_range", one_of("relative_range", "relative", "absolute", "absolute_range"),
         "SIZE is shares of the sides: the least, or exactly; or pixels: exactly, or the limits.", {"when": CROPPED}),
        ("CROP.SIZE", [0.9, 0.9], sequence(number(above=0), length=2), "Of height and width.", {"when": CROPPED}),
        ("COLOR_JITTER", [0.0, 0.0, 0.0], sequence(number(0, 1), length=3),
         "Brightness, contrast and saturation are multiplied by 1 - x to 1 + x."),
        ("FORMAT", "BGR", text, "Order of the channels.", W | {"builtin": one_of("BGR", "RGB")}),
    ),
    *section(
        "SOLVER.",
        ("OPTIMIZER", "SGD", one_of("SGD", "ADAMW"), "detectron2 has SGD."),
        ("LR_SCHEDULER_NAME", "WarmupMultiStepLR",
         one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"), "How the learning rate falls.",
         {"builtin": one_of("WarmupMultiStepLR", "WarmupCosineLR")}),
        ("MAX_ITER", 40000, whole(1), "Steps of training."),
        ("BASE_LR", 0.001, number(above=0), "Learning rate."),
        ("BASE_LR_END", 0.0, number(0), "Where a cosine ends.",
         {"when": chosen("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")}),
        ("MOMENTUM", 0.9, fraction, "Of SGD.", {"when": chosen("SOLVER.OPTIMIZER", "SGD")}),
        ("NESTEROV", False, switch, "Of SGD.", {"when": chosen("SOLVER.OPTIMIZER", "SGD")}),
        ("WEIGHT_DECAY", 0.0001, number(0), "Of all but norms."),
        ("WEIGHT_DECAY_NORM", 0.0, number(0), "Of normalisation layers."),
        ("GAMMA", 0.1, number(above=0), "Factor of the learning rate at each of STEPS.", {"when": IN_STEPS}),
        ("STEPS", (30000,), ascending(whole(1), strictly=True), "Where the learning rate falls.", {"when": IN_STEPS}),
        ("WARMUP_FACTOR", 1.0 / 1000, fraction, "Share of the learning rate at the first step."),
        ("WARMUP_ITERS", 1000, whole(0), "Steps until the whole of it."),
        ("WARMUP_METHOD", "linear", one_of("linear", "constant"), "How it gets there."),
        ("CHECKPOINT_PERIOD", 5000, whole(1), "Steps between checkpoints."),
        ("MAX_TO_KEEP", 0, whole(0), "Of these the newest are kept; 0: all."),
        ("IMS_PER_BATCH", 16, whole(1), "Images of a step, over all processes."),
        ("ACCUMULATION_STEPS", 1, whole(1),
         "Parts that a step's images go through the model in, one after the other; their gradients are added up."),
        ("CLIP_GRADIENTS.ENABLED", False, switch, "Gradients are clipped."),
        ("CLIP_GRADIENTS.CLIP_TYPE", "value", one_of("value", "norm", "full_model"),
         "Each number; the norm of each parameter's; the norm of all together.", {"when": CLIPPED}),
        ("CLIP_GRADIENTS.CLIP_VALUE", 1.0, number(above=0), "The limit.", {"when": CLIPPED}),
        ("CLIP_GRADIENTS.NORM_TYPE", 2.0, number(above=0), "Of the norm.", {"when": CLIPPED}),
        ("AMP.ENABLED", False, switch, "bfloat16 autocast (float16 on GPUs without bfloat16)."),
    ),
    *section(
        "MODEL_EMA.",
        ("ENABLED", False, switch,
         "A moving average of the weights: what is evaluated in training, and model_final_ema.pth at its end."),
        ("DECAY", 0.999, fraction, "Of the average, at every step.", {"when": chosen("MODEL_EMA.ENABLED", True)}),
    ),
    *section(
        "TEST.",
        ("EVAL_PERIOD", 0, whole(0), "Steps between evaluations; 0: only at the end."),
        ("BEST_METRIC", "", text,
         "model_best.pth has the weights of the evaluation with the highest of this: AP, AR@100, or dataset/AP."),
        ("PATIENCE", 0, whole(0), "Training ends after so many evaluations without a better BEST_METRIC; 0: never."),
        ("PRECISION", "float32", one_of("float32", "bfloat16", "float16"), "Of the model in evaluation (autocast)."),
        ("DETECTIONS_PER_IMAGE", 100, whole(1), "At most."),
        ("AUG.ENABLED", False, one_of(False), "Test-time augmentation, which this project does not have.",
         {"detectron2_only": True}),
        ("EXPECTED_RESULTS", [], one_of([]), "Read by nothing here.", {"detectron2_only": True}),
    ),
    # ---- backbone -----------------------------------------------------------------------------------
    *section(
        "MODEL.",
        ("DEVICE", "cuda", device, "A GPU if there is one: auto."),
        ("META_ARCHITECTURE", "GeneralizedRCNN", text, "The kind of detector.",
         {"builtin": one_of(*CHOICES["MODEL.META_ARCHITECTURE"]), "weights": True}),
        ("WEIGHTS", "", text, "Checkpoint to start from or to evaluate; a file, or detectron2://FILE of its zoo."),
        ("PIXEL_MEAN", [103.530, 116.280, 123.675], sequence(number()), "Of each channel, in INPUT.FORMAT's order.",
         W),
        ("PIXEL_STD", [1.0, 1.0, 1.0], sequence(number(above=0)), "Of each channel.", W),
        ("LOAD_PROPOSALS", False, switch, "Proposals come from files (Fast R-CNN)."),
        ("MASK_ON", False, switch, "A mask head.", {"builtin": one_of(False)}),
        ("KEYPOINT_ON", False, switch, "A keypoint head.", {"builtin": one_of(False)}),
        ("BACKBONE.NAME", "build_resnet_backbone", text,
         "p6 pooled from p5; the same with the features before the FPN; p6 and p7 from C5 (RetinaNet); from P5 (FCOS); "
         "any network of timm.",
         {"builtin": one_of(*RESNET_BACKBONES, TIMM_BACKBONE), "weights": True}),
        ("BACKBONE.FREEZE_AT", 2, whole(0), "The stem and the stages before it do not train; 0: all do."),
        ("FPN.IN_FEATURES", [], sequence(text), "Stages that the pyramid is built on.",
         W | {"builtin": one_of(RES_STAGES, RES_STAGES[1:])}),
        ("FPN.OUT_CHANNELS", 256, whole(1), "Width of the pyramid.", W),
        ("FPN.NORM", "", norm, "Of the pyramid.", W | {"builtin": one_of("", "BN", "SyncBN", "GN")}),
        ("FPN.FUSE_TYPE", "sum", one_of("sum", "avg"), "Of the top-down path.", W | {"builtin": one_of("sum")}),
    ),
    *section(
        "MODEL.RESNETS.",
        ("DEPTH", 50, one_of(18, 34, 50, 101, 152), "Layers.", W),
        ("OUT_FEATURES", ["res4"], sequence(one_of("stem", *RES_STAGES), least=1), "Stages that are handed on."),
        ("NORM", "FrozenBN", norm, "Of the ResNet.", W | {"builtin": one_of("FrozenBN", "BN", "SyncBN")}),
        ("NUM_GROUPS", 1, whole(1), "ResNeXt's cardinality.", W),
        ("WIDTH_PER_GROUP", 64, whole(1), "ResNeXt's width.", W),
        ("STRIDE_IN_1X1", True, switch, "MSRA's and Caffe2's ResNets stride in the first 1x1.", W),
        ("RES2_OUT_CHANNELS", 256, whole(1), "64 for depths 18 and 34, else 256.", W),
        when=RESNET,
    ),
    *section(
        "MODEL.TIMM.",
        ("NAME", "resnet50", text,
         "A model of timm with features of strides 4, 8, 16 and 32, as tf_efficientnet_lite0. INPUT.FORMAT, PIXEL_MEAN "
         "and PIXEL_STD follow from it unless the file itself sets them. MODEL.WEIGHTS timm://NAME starts from its "
         "hub's weights.", W),
        ("NORM", "BN", one_of("BN", "FrozenBN"), "FrozenBN: batch normalisation keeps the numbers it was loaded with."),
        ("TOP_BLOCK", "pool", one_of("pool", "res5", "p5"),
         "Above p5: p6 pooled from it; or p6 and p7 as convolutions of res5 (RetinaNet) or of p5 (FCOS).", W),
        when=TIMM,
    ),
    # ---- proposals ----------------------------------------------------------------------------------
    *section(
        "MODEL.PROPOSAL_GENERATOR.",
        ("NAME", "RPN", text, "Guided anchors, sliding-window anchors, Table 1's variants of them, or none.",
         {"builtin": one_of(*CHOICES["MODEL.PROPOSAL_GENERATOR.NAME"]), "weights": True}),
        ("MIN_SIZE", 0, number(0), "Sides of proposals must exceed it.", {"when": RPNS}),
        when=PROPOSING,
    ),
    *section(
        "MODEL.ANCHOR_GENERATOR.",
        ("NAME", "DefaultAnchorGenerator", text, "", {"builtin": one_of("DefaultAnchorGenerator")}),
        ("SIZES", [[32, 64, 128, 256, 512]], sequence(sequence(number(above=0), least=1), least=1),
         "Square roots of the anchors' areas, a list per level.", W),
        ("ASPECT_RATIOS", [[0.5, 1.0, 2.0]], sequence(sequence(number(above=0), least=1), least=1),
         "Height by width, a list per level.", W),
        ("OFFSET", 0.0, number(0, 1), "Of the anchors in their cells.", W | {"builtin": one_of(0.0)}),
        when=FIXED_ANCHORS,
        own=OUR_RPNS,
    ),
    *section(
        "MODEL.RPN.",
        ("HEAD_NAME", "StandardRPNHead", text, "", {"builtin": one_of("StandardRPNHead")}),
        ("CONV_DIMS", [-1], sequence(whole()), "", {"builtin": one_of([-1])}),
        ("IN_FEATURES", ["res4"], features, "Levels that proposals come from.", W),
        ("BOUNDARY_THRESH", -1, whole(), "", {"builtin": one_of(-1)}),
        ("IOU_THRESHOLDS", [0.3, 0.7], thresholds, "Anchors are negative below the first, positive from the second."),
        ("IOU_LABELS", [0, -1, 1], sequence(whole()), "", {"builtin": one_of([0, -1, 1])}),
        ("BATCH_SIZE_PER_IMAGE", 256, whole(1), "Anchors in the losses' sample."),
        ("POSITIVE_FRACTION", 0.5, fraction, "Of the sample, at most."),
        ("BBOX_REG_LOSS_TYPE", "smooth_l1", text, "", {"builtin": one_of("smooth_l1")}),
        ("BBOX_REG_LOSS_WEIGHT", 1.0, loss_weight, "Of the box loss, beside LOSS_WEIGHT."),
        ("BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), weights4, "Of the deltas: 1 / their standard deviations.", W),
        ("SMOOTH_L1_BETA", 0.0, number(0), "Of the box loss; 0: L1."),
        ("LOSS_WEIGHT", 1.0, loss_weight, "Of objectness and boxes."),
        ("PRE_NMS_TOPK_TRAIN", 12000, whole(1), "Per level. With guided anchors also the active locations' limit."),
        ("PRE_NMS_TOPK_TEST", 6000, whole(1), "Per level."),
        ("POST_NMS_TOPK_TRAIN", 2000, whole(1), "Proposals per image."),
        ("POST_NMS_TOPK_TEST", 1000, whole(1), "Proposals per image."),
        ("NMS_THRESH", 0.7, fraction, "Within a level."),
        when=RPNS,
        own=OUR_RPNS,
    ),
    *section(
        "MODEL.STAGED_RPN.",
        ("STAGES", 1, one_of(1, 2), "2: \"RPN + iterative\", anchors regressed and classified twice.", W),
        (
            "BEFORE_FPN",
            [],
            sequence(text),
            "Features before the FPN that the first of two stages reads: \"RefineRPN\". They come from "
            "MODEL.BACKBONE.NAME build_resnet_fpn_backbone_with_stages.",
            W | {"builtin": one_of([], RES_STAGES)},
        ),
        ("OBJECTNESS_LOSS", "cross_entropy", one_of("cross_entropy", "focal"), "Over the sample, or over all anchors."),
        ("BOX_LOSS", "smooth_l1", one_of("smooth_l1", "bounded_iou"), "Of the deltas, or of the boxes."),
        when=STAGED,
    ),
    # ---- guided anchors -----------------------------------------------------------------------------
    # Of MODEL.RPN apply IN_FEATURES, IOU_THRESHOLDS, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION, BBOX_REG_WEIGHTS,
    # SMOOTH_L1_BETA, LOSS_WEIGHT, BBOX_REG_LOSS_WEIGHT, NMS_THRESH and the four TOPKs.
    *section(
        GA,
        ("CONV", False, switch, "A 3x3 convolution before all branches. Figure 1 has none, the release has one.",
         W | {"when": GA_RPN}),
        ("SIGMA", 8.0, number(above=0), "Eq. 2: w = SIGMA * stride * exp(SHAPE_STD * dw).", W),
        ("SHAPE_STD", 1.0, number(above=0), "The release has 0.14.", W | {"when": SHAPED}),
        ("CELL_OFFSET", 0.5, number(0, 1), "Cell (y, x) stands for ((x + CELL_OFFSET) * stride, ...): 1/2 in section "
         "3.1, 0 in the release.", W),
        ("LOW_QUALITY_IOU", 0.3, fraction,
         "A box's best guided anchor is positive from this IoU on, whatever the IOU_THRESHOLDS say."),
        when=GUIDED,
    ),
    *section(
        GA + "LOCATION.",
        ("ENABLED", True, switch, "False (Table 4, without L.): anchors at every location.", W | {"when": GA_RPN}),
        ("THRESHOLD", 0.01, fraction,
         "A location is active from this probability on (epsilon_L). Table 5: 0.05 keeps 6.5 % at no loss."),
        ("TOPK_TEST", 0, whole(0), "The best locations per level and image that may be active; 0: no limit. In "
         "training the limit is MODEL.RPN.PRE_NMS_TOPK_TRAIN."),
        ("CENTER_RATIO", 0.2, number(0), "sigma_1 of section 3.4."),
        ("IGNORE_RATIO", 0.5, number(0), "sigma_2."),
        (
            "RULE",
            "paper",
            one_of("paper", "release"),
            "What a region is: the cells whose points lie in it, positive before ignored (3.4); or the release's: "
            "rounded, inclusive borders, and later boxes overwrite earlier ones. It has about twice the positives.",
        ),
        ("FOCAL_LOSS_ALPHA", 0.25, fraction, "Of the location loss."),
        ("FOCAL_LOSS_GAMMA", 2.0, number(0), "Of the location loss."),
        ("OUTSIDE_WEIGHT", 0.1, number(0), "Weight of the locations outside all regions, which are by far the most. "
         "The paper is silent, the release has 0.1."),
        ("LOSS_WEIGHT", 1.0, loss_weight, "lambda_1."),
        when=LOCATED,
    ),
    *section(
        GA + "SHAPE.",
        ("ENABLED", True, switch, "False (Table 4, without S.): the fixed anchors of MODEL.ANCHOR_GENERATOR.",
         W | {"when": GA_RPN}),
        ("PREDICT_CENTER", False, switch, "True (Table 6, without C.A.): anchors may move off their locations.", W),
        ("MODE", "sampled", one_of("sampled", "exact"),
         "vIoU (Eq. 5) over SCALES x RATIOS times SIGMA * stride, as the paper has it, or over all sides within "
         "SIZE_RANGE times that."),
        ("SCALES", [1.0, 2 ** (1 / 3), 2 ** (2 / 3)], sequence(number(above=0), least=1), "Of the sampled shapes.",
         {"when": SAMPLED_SHAPES}),
        ("RATIOS", [0.5, 1.0, 2.0], sequence(number(above=0), least=1), "Height by width of the sampled shapes.",
         {"when": SAMPLED_SHAPES}),
        ("SIZE_RANGE", [0.7, 2.3], ascending(number(above=0), length=2), "Of mode exact.",
         {"when": SHAPED & chosen(GA + "SHAPE.MODE", "exact")}),
        ("IOU_THRESHOLDS", [0.3, 0.7], thresholds, "vIoU: negative below the first, positive from the second."),
        ("LOW_QUALITY_IOU", 0.3, fraction, "A box's best location is positive from this vIoU on."),
        ("BATCH_SIZE_PER_IMAGE", 256, whole(1), "Locations in the shape loss's sample."),
        ("POSITIVE_FRACTION", 0.5, fraction, "Of the sample, at most."),
        ("SMOOTH_L1_BETA", 0.2, number(0), "Of the bounded IoU loss (Eq. 6)."),
        ("LOSS_WEIGHT", 0.1, loss_weight, "lambda_2 (section 4.1)."),
        ("LOSS_DIVISOR", "positives", one_of("positives", "sample"),
         "Of the shape loss: its locations, so that it is a mean; or the release's: all sampled, with the negatives."),
        when=SHAPED,
    ),
    *section(
        GA + "ADAPTION.",
        ("OFFSET_GROUPS", 4, whole(1), "Deformable groups.", W),
        ("OFFSETS", "shape", one_of("shape", "features", "none"),
         "Where the offsets of the 3x3 deformable convolution come from: Eq. 3; not from anchors (4.3); nowhere (Table "
         "4, without F.A.): an ordinary convolution.", W),
        when=GUIDED,
    ),
    # ---- ROI heads ----------------------------------------------------------------------------------
    *section(
        "MODEL.ROI_HEADS.",
        ("NAME", "Res5ROIHeads", text, "GuidedAnchoring...: for high-quality proposals (3.5).",
         {"builtin": one_of("StandardROIHeads", "GuidedAnchoringROIHeads"), "weights": True}),
        ("NUM_CLASSES", 80, whole(1), "Without the background.", W),
        ("IN_FEATURES", ["res4"], features, "Levels that boxes are pooled from, each half the size of the one before.",
         W),
        ("IOU_THRESHOLDS", [0.5], ascending(overlap), "A proposal is an object's from this IoU on."),
        ("IOU_LABELS", [0, 1], sequence(whole()), "", {"builtin": one_of([0, 1])}),
        ("BATCH_SIZE_PER_IMAGE", 512, whole(1), "Proposals in the losses' sample."),
        ("POSITIVE_FRACTION", 0.25, fraction, "Of the sample, at most."),
        ("SCORE_THRESH_TEST", 0.05, fraction, "Boxes of lower scores are no detections."),
        ("NMS_THRESH_TEST", 0.5, fraction, "Within a class."),
        ("PROPOSAL_APPEND_GT", True, switch, "The objects are among the proposals in training.",
         {"builtin": one_of(True)}),
        ("PROPOSALS_PER_IMAGE", 300, whole(0), "Proposals used per image, best first: Table 7 has 300. 0: all.",
         {"when": HIGH_QUALITY}),
        when=RCNN,
    ),
    *section(
        "MODEL.ROI_BOX_HEAD.",
        ("NAME", "", text, "", {"builtin": one_of("FastRCNNConvFCHead")}),
        ("BBOX_REG_LOSS_TYPE", "smooth_l1", text, "", {"builtin": one_of("smooth_l1")}),
        ("BBOX_REG_LOSS_WEIGHT", 1.0, loss_weight, "Of the box loss."),
        ("BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), weights4, "Of the deltas: 1 / their standard deviations.", W),
        ("SMOOTH_L1_BETA", 0.0, number(0), "Of the box loss; 0: L1."),
        ("POOLER_RESOLUTION", 14, whole(1), "Of what is pooled.", W),
        ("POOLER_SAMPLING_RATIO", 0, whole(0), "Samples per side of a bin; 0: as many as there are pixels."),
        ("POOLER_TYPE", "ROIAlignV2", text, "", W | {"builtin": one_of("ROIAlignV2")}),
        ("NUM_FC", 0, whole(0), "Fully connected layers.", W | {"builtin": whole(1)}),
        ("FC_DIM", 1024, whole(1), "Their width.", W),
        ("NUM_CONV", 0, whole(0), "Convolutions before them.", W | {"builtin": one_of(0)}),
        ("CLS_AGNOSTIC_BBOX_REG", False, switch, "One box for all classes.", W | {"builtin": one_of(False)}),
        when=RCNN,
    ),
    # ---- one stage ----------------------------------------------------------------------------------
    *section(
        "MODEL.RETINANET.",
        ("NUM_CLASSES", 80, whole(1), "", W),
        ("IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], features, "Levels that boxes come from.", W),
        ("NUM_CONVS", 4, whole(0), "3x3 convolutions of each tower.", W),
        ("NORM", "", norm, "Of the towers.", W | {"builtin": one_of("", "GN")}),
        ("PRIOR_PROB", 0.01, fraction, "Probability of every class at the start."),
        ("IOU_THRESHOLDS", [0.4, 0.5], thresholds, "Anchors are negative below the first, positive from the second."),
        ("IOU_LABELS", [0, -1, 1], sequence(whole()), "", {"builtin": one_of([0, -1, 1])}),
        ("BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), weights4, "Of the deltas: 1 / their standard deviations.", W),
        ("BBOX_REG_LOSS_TYPE", "smooth_l1", text, "", {"builtin": one_of("smooth_l1")}),
        ("SMOOTH_L1_LOSS_BETA", 0.1, number(0), "Of the box loss; 0: L1."),
        ("FOCAL_LOSS_ALPHA", 0.25, fraction, "Of the classes' loss."),
        ("FOCAL_LOSS_GAMMA", 2.0, number(0), "Of the classes' loss."),
        ("SCORE_THRESH_TEST", 0.05, fraction, "Of a class, before NMS."),
        ("TOPK_CANDIDATES_TEST", 1000, whole(1), "Of every level, before NMS."),
        ("NMS_THRESH_TEST", 0.5, fraction, "Within a class."),
        when=RETINANETS,
        own=OUR_RETINANET,
    ),
    *section(
        "MODEL.SCOPENET.",
        ("NUM_CLASSES", 80, whole(1), "", W),
        ("IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], features, "P6 and P7 from P5, as FCOS (\"custom FPN\" of Table "
         "4): MODEL.BACKBONE.NAME build_scopenet_resnet_fpn_backbone; from C5, as RetinaNet: "
         "build_retinanet_resnet_fpn_backbone.", W),
        ("NUM_CONVS", 4, whole(0), "3x3 convolutions of each of the two towers.", W),
        ("NORM", "", one_of("", "GN"), "After each (Table 4).", W),
        ("PRIOR_PROB", 0.01, fraction, "Probability of every class at the start."),
        ("BINS.NUM", 5, whole(1), "N anchors per side; 1 is direct regression (section 4.1). Table 2: 1, 3, 5, 7.", W),
        ("BINS.SIZE", 1.0, number(above=0), "log2(b_{n+1} / b_n). Table 2: 0.75, 1, 1.25.", W | {"when": BINNED}),
        ("BINS.UNCERTAINTY", True, switch, "sigma^2 of Eq. 2 (Table 3).", W | {"when": BINNED}),
        (
            "BINS.TARGETS",
            "one_hot",
            one_of("one_hot", "soft"),
            "Beyond the paper, soft: two neighbouring bins share the target, as in the distribution focal loss "
            "(Generalized Focal Loss, Li et al. 2020, Eq. 6).",
            {"when": BINNED},
        ),
        (
            "RESCORE",
            "mean",
            one_of("none", "mean", "distribution"),
            "A box's score is p_cls times 1; times the mean over the sides of the largest bin probability (Eq. 3); "
            "beyond the paper, times an IoU predicted from the distributions' statistics (Generalized Focal Loss V2, "
            "Li et al. 2021, 3.2).",
            {"when": BINNED},
        ),
        ("TARGETS.CENTER_RADII", [1.5, 2.0], sequence(number(above=0), length=2),
         "Section 3.2. A location learns a box if it is within this many strides of its centre: classification, "
         "localization."),
        ("TARGETS.RANGES", [64, 128, 256, 512], ascending(number(above=0), strictly=True),
         "Pixels that separate the levels' ranges of the largest distance to a side."),
        ("LOSS.FOCAL_ALPHA", 0.25, fraction, "Of the classes' loss."),
        ("LOSS.FOCAL_GAMMA", 2.0, number(0), "Of the classes' loss."),
        ("LOSS.BOX", "iou", one_of("iou", "giou", "diou"),
         "-log IoU; beyond the paper GIoU (Rezatofighi et al. 2019) and DIoU (Zheng et al. 2020)."),
        ("LOSS.BIN_WEIGHT", 0.5, loss_weight, "lambda_bin.", {"when": BINNED}),
        ("LOSS.BOX_WEIGHT", 1.0, loss_weight, "lambda_loc."),
        ("LOSS.QUALITY_WEIGHT", 1.0, loss_weight, "Of RESCORE distribution.",
         {"when": BINNED & chosen("MODEL.SCOPENET.RESCORE", "distribution")}),
        ("SCORE_THRESH_TEST", 0.05, fraction, "Of a class at a location, before NMS."),
        ("TOPK_CANDIDATES_TEST", 1000, whole(1), "Of every level and image, before NMS."),
        ("NMS_THRESH_TEST", 0.5, fraction, "Within a class; Table 4 has 0.5 and 0.6."),
        when=SCOPENET,
    ),
]  # fmt: skip
