"""The part of detectron2's configuration that the built-in engine honours.

Names and defaults are detectron2's, so a yaml means the same to both. A key outside this part is an error
when a yaml sets it; so is a value that the engine cannot honour (:func:`check_cfg`).
"""

from fvcore.common.config import CfgNode as CN

from ...config import ConfigError, add_ga_scope_config, check_values
from .backbone import TOPS, level_names

HINT = "the built-in engine cannot honour it; detectron2 (--engine detectron2) can"


def get_cfg() -> CN:
    """The defaults, with this project's keys."""
    cfg = CN()
    cfg.VERSION = 2
    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1

    model = cfg.MODEL = CN()
    model.DEVICE = "cuda"
    model.META_ARCHITECTURE = "GeneralizedRCNN"
    model.WEIGHTS = ""
    model.PIXEL_MEAN = [103.530, 116.280, 123.675]
    model.PIXEL_STD = [1.0, 1.0, 1.0]
    model.LOAD_PROPOSALS = False
    model.MASK_ON = False
    model.KEYPOINT_ON = False

    model.BACKBONE = CN({"NAME": "build_resnet_backbone", "FREEZE_AT": 2})
    model.RESNETS = CN(
        {
            "DEPTH": 50,
            "OUT_FEATURES": ["res4"],
            "NORM": "FrozenBN",
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            "STRIDE_IN_1X1": True,
            "RES2_OUT_CHANNELS": 256,
        }
    )
    model.FPN = CN({"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"})

    model.PROPOSAL_GENERATOR = CN({"NAME": "RPN", "MIN_SIZE": 0})
    model.ANCHOR_GENERATOR = CN(
        {"NAME": "DefaultAnchorGenerator", "SIZES": [[32, 64, 128, 256, 512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]}
    )
    model.ANCHOR_GENERATOR.OFFSET = 0.0
    model.RPN = CN(
        {
            "HEAD_NAME": "StandardRPNHead",
            "CONV_DIMS": [-1],
            "IN_FEATURES": ["res4"],
            "BOUNDARY_THRESH": -1,
            "IOU_THRESHOLDS": [0.3, 0.7],
            "IOU_LABELS": [0, -1, 1],
            "BATCH_SIZE_PER_IMAGE": 256,
            "POSITIVE_FRACTION": 0.5,
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
            "SMOOTH_L1_BETA": 0.0,
            "LOSS_WEIGHT": 1.0,
            "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000,
            "POST_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
        }
    )
    model.ROI_HEADS = CN(
        {
            "NAME": "Res5ROIHeads",
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.5],
            "IOU_LABELS": [0, 1],
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
            "PROPOSAL_APPEND_GT": True,
        }
    )
    model.ROI_BOX_HEAD = CN(
        {
            "NAME": "",
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "SMOOTH_L1_BETA": 0.0,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_FC": 0,
            "FC_DIM": 1024,
            "NUM_CONV": 0,
            "CLS_AGNOSTIC_BBOX_REG": False,
        }
    )

    model.RETINANET = CN(
        {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "NORM": "",
            "PRIOR_PROB": 0.01,
            "IOU_THRESHOLDS": [0.4, 0.5],
            "IOU_LABELS": [0, -1, 1],
            "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "SMOOTH_L1_LOSS_BETA": 0.1,
            "FOCAL_LOSS_ALPHA": 0.25,
            "FOCAL_LOSS_GAMMA": 2.0,
            "SCORE_THRESH_TEST": 0.05,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.5,
        }
    )

    cfg.INPUT = CN(
        {
            "MIN_SIZE_TRAIN": (800,),
            "MIN_SIZE_TRAIN_SAMPLING": "choice",
            "MAX_SIZE_TRAIN": 1333,
            "MIN_SIZE_TEST": 800,
            "MAX_SIZE_TEST": 1333,
            "RANDOM_FLIP": "horizontal",
            "FORMAT": "BGR",
        }
    )
    cfg.DATASETS = CN(
        {
            "TRAIN": (),
            "TEST": (),
            "PROPOSAL_FILES_TRAIN": (),
            "PROPOSAL_FILES_TEST": (),
            "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
            "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
        }
    )
    cfg.DATALOADER = CN({"NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True, "FILTER_EMPTY_ANNOTATIONS": True})

    cfg.SOLVER = CN(
        {
            "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
            "MAX_ITER": 40000,
            "BASE_LR": 0.001,
            "BASE_LR_END": 0.0,
            "MOMENTUM": 0.9,
            "NESTEROV": False,
            "WEIGHT_DECAY": 0.0001,
            "WEIGHT_DECAY_NORM": 0.0,
            "GAMMA": 0.1,
            "STEPS": (30000,),
            "WARMUP_FACTOR": 1.0 / 1000,
            "WARMUP_ITERS": 1000,
            "WARMUP_METHOD": "linear",
            "CHECKPOINT_PERIOD": 5000,
            "IMS_PER_BATCH": 16,
            "CLIP_GRADIENTS": CN({"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}),
        }
    )
    cfg.SOLVER.AMP = CN({"ENABLED": False})
    cfg.TEST = CN({"EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100})
    return add_ga_scope_config(cfg)


# What a model reads of the keys below: their first parts. All read what stands under no model's part.
PARTS = {
    "GeneralizedRCNN": ("PROPOSAL_GENERATOR", "ANCHOR_GENERATOR", "RPN", "ROI_HEADS", "ROI_BOX_HEAD"),
    "GuidedAnchoringRetinaNet": ("RETINANET",),
    "ProposalNetwork": ("PROPOSAL_GENERATOR", "ANCHOR_GENERATOR", "RPN"),
    "RetinaNet": ("ANCHOR_GENERATOR", "RETINANET"),
    "ScopeNet": ("SCOPENET",),
}

PRECOMPUTED = "PrecomputedProposals"  # detectron2's name of no generator: proposals come with the images

# Keys whose value this engine takes only from a list. Some of detectron2's defaults are not among them.
ALLOWED = {
    "MODEL.MASK_ON": (False,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.BACKBONE.NAME": tuple(TOPS),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN"),
    "MODEL.FPN.IN_FEATURES": (["res2", "res3", "res4", "res5"], ["res3", "res4", "res5"]),
    "MODEL.FPN.NORM": ("", "BN", "GN"),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "GuidedAnchoringRPN", "StagedRPN", PRECOMPUTED),
    "MODEL.STAGED_RPN.BEFORE_FPN": ([], ["res2", "res3", "res4", "res5"]),
    "MODEL.STAGED_RPN.OBJECTNESS_LOSS": ("cross_entropy", "focal"),
    "MODEL.STAGED_RPN.BOX_LOSS": ("smooth_l1", "bounded_iou"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0.0,),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.CONV_DIMS": ([-1],),
    "MODEL.RPN.BOUNDARY_THRESH": (-1,),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "GuidedAnchoringROIHeads"),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1],),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True,),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (2,),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.RETINANET.NORM": ("", "GN"),
    "MODEL.RETINANET.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}


def check_cfg(cfg):
    """Raises ConfigError for a value that the engine would otherwise ignore or get wrong."""
    check_values(cfg, {"MODEL.META_ARCHITECTURE": tuple(PARTS)}, f": {HINT}")
    read = PARTS[cfg.MODEL.META_ARCHITECTURE]
    unread = {part for parts in PARTS.values() for part in parts} - set(read)
    check_values(cfg, {key: values for key, values in ALLOWED.items() if key.split(".")[1] not in unread}, f": {HINT}")
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if "PROPOSAL_GENERATOR" in read and cfg.MODEL.LOAD_PROPOSALS != (generator == PRECOMPUTED):
        raise ConfigError(
            f"MODEL.LOAD_PROPOSALS: expected True with MODEL.PROPOSAL_GENERATOR.NAME {PRECOMPUTED} and False "
            f"otherwise, got {cfg.MODEL.LOAD_PROPOSALS} with {generator}"
        )
    levels = level_names(cfg)
    for part in read:
        names = cfg.MODEL[part].get("IN_FEATURES", ())
        unknown = [name for name in names if name not in levels]
        if unknown:
            raise ConfigError(
                f"MODEL.{part}.IN_FEATURES: expected names of {levels[0]} to {levels[-1]}, got {unknown}: {HINT}"
            )


def merge_file(cfg, path):
    """Merges a yaml (with its ``_BASE_``); a key that the engine does not know is named together with the file."""
    try:
        cfg.merge_from_file(path)
    except KeyError as error:
        raise ConfigError(f"{path}: {str(error.args[0]).strip()}: {HINT}, if it is a key of detectron2") from None
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
