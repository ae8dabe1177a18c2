"""What takes more than one key to be wrong. Of a component that a user registered nothing is."""

import itertools

from ..errors import ConfigError
from .keys import (
    FIXED_ANCHORS,
    GA_RPN,
    GUIDED,
    LOADED_PROPOSALS,
    LOCATED,
    PRECOMPUTED,
    PROPOSING,
    RCNN,
    RES_STAGES,
    RESNET,
    RETINANETS,
    RPNS,
    SCOPENET,
    STAGED,
    TIMM,
    TIMM_BACKBONE,
)
from .schema import BUILTIN_HINT, flat, get

# Feature levels of an FPN, by MODEL.BACKBONE.NAME: the last one.
LAST_LEVEL = {
    "build_resnet_fpn_backbone": 6,
    "build_resnet_fpn_backbone_with_stages": 6,
    "build_retinanet_resnet_fpn_backbone": 7,
    "build_scopenet_resnet_fpn_backbone": 7,
}


# ... and with timm's networks by MODEL.TIMM.TOP_BLOCK.
TIMM_LAST_LEVEL = {"pool": 6, "res5": 7, "p5": 7}


def _wrong(name: str, expected, got, hint: str = ""):
    raise ConfigError(f"{name}: expected {expected}, got {got!r}{hint}")


def level_names(cfg) -> list[str] | None:
    """The features that the backbone of a configuration makes, finest first; None where they are not known."""
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        return list(cfg.MODEL.RESNETS.OUT_FEATURES)
    last, stages = LAST_LEVEL.get(cfg.MODEL.BACKBONE.NAME), cfg.MODEL.FPN.IN_FEATURES
    if TIMM.certain(cfg):
        last = TIMM_LAST_LEVEL[cfg.MODEL.TIMM.TOP_BLOCK]
    if last is None or not stages or not stages[0].startswith("res"):
        return None
    return [f"p{i}" for i in range(int(stages[0].removeprefix("res")), last + 1)]


def in_features(cfg) -> dict[str, list[str]]:
    """{key: levels} of the parts that the model has."""
    parts = {"RPN": RPNS, "ROI_HEADS": RCNN, "RETINANET": RETINANETS, "SCOPENET": SCOPENET}
    return {f"MODEL.{p}.IN_FEATURES": list(cfg.MODEL[p].IN_FEATURES) for p, when in parts.items() if when.certain(cfg)}


# More is a slip: it would end in an allocation that fails, in the operators' limits, or never.
MOST_WHOLE = 2**31 - 1
MOST = {
    "DATALOADER.NUM_WORKERS": 256,
    "INPUT.MIN_SIZE_TRAIN": 2**15,
    "INPUT.MIN_SIZE_TEST": 2**15,
    "SOLVER.IMS_PER_BATCH": 2**16,
    "SOLVER.ACCUMULATION_STEPS": 2**16,
    "SOLVER.GAMMA": 10,
    "MODEL.FPN.OUT_CHANNELS": 4096,
    "MODEL.RESNETS.NUM_GROUPS": 256,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 1024,
    "MODEL.ANCHOR_GENERATOR.SIZES": 2**16,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": 1000,
    "MODEL.GUIDED_ANCHORING.SIGMA": 1000,
    "MODEL.GUIDED_ANCHORING.SHAPE_STD": 10,
    "MODEL.GUIDED_ANCHORING.LOCATION.CENTER_RATIO": 10,
    "MODEL.GUIDED_ANCHORING.LOCATION.IGNORE_RATIO": 10,
    "MODEL.GUIDED_ANCHORING.SHAPE.SCALES": 1000,
    "MODEL.GUIDED_ANCHORING.SHAPE.RATIOS": 1000,
    "MODEL.GUIDED_ANCHORING.SHAPE.SIZE_RANGE": 1000,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2**15,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 2**14,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 16,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 16,
    "MODEL.RETINANET.NUM_CLASSES": 2**15,
    "MODEL.RETINANET.NUM_CONVS": 64,
    "MODEL.SCOPENET.NUM_CLASSES": 2**15,
    "MODEL.SCOPENET.NUM_CONVS": 64,
    "MODEL.SCOPENET.BINS.NUM": 256,
    "MODEL.SCOPENET.BINS.SIZE": 16,
    "MODEL.SCOPENET.TARGETS.RANGES": 2**20,
    "MODEL.SCOPENET.TARGETS.CENTER_RADII": 1000,
}


def limits(cfg, builtin):
    def numbers(value):
        return [n for v in value for n in numbers(v)] if isinstance(value, (list, tuple)) else [value]

    for name, value in flat(cfg).items():
        most = MOST.get(name, MOST_WHOLE)
        for number in numbers(value):
            whole = isinstance(number, int) and not isinstance(number, bool)
            if (whole or (name in MOST and isinstance(number, float))) and number > most:
                _wrong(name, f"at most {most}", value)


def pixels(cfg, builtin):
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for name in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[name]) != channels:
            _wrong(f"MODEL.{name}", f"{channels} numbers, one per channel of INPUT.FORMAT", list(cfg.MODEL[name]))


def resnet(cfg, builtin):
    keys = cfg.MODEL.RESNETS
    if not RESNET.certain(cfg):
        return
    width = 64 if keys.DEPTH in (18, 34) else 256
    if (builtin or width == 64) and keys.RES2_OUT_CHANNELS != width:
        _wrong("MODEL.RESNETS.RES2_OUT_CHANNELS", f"{width} for depth {keys.DEPTH}", keys.RES2_OUT_CHANNELS)
    for name, only in (("NUM_GROUPS", 1), ("WIDTH_PER_GROUP", 64)):
        if width == 64 and keys[name] != only:
            _wrong(f"MODEL.RESNETS.{name}", f"{only} for depth {keys.DEPTH}", keys[name])
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in keys.OUT_FEATURES]
    if missing:
        _wrong("MODEL.RESNETS.OUT_FEATURES", f"all of MODEL.FPN.IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)}",
               list(keys.OUT_FEATURES))  # fmt: skip


def pyramid(cfg, builtin):
    stages = list(cfg.MODEL.FPN.IN_FEATURES)
    if TIMM.certain(cfg) and stages not in (RES_STAGES, RES_STAGES[1:]):
        _wrong("MODEL.FPN.IN_FEATURES", f"{RES_STAGES} or {RES_STAGES[1:]} with a network of timm", stages)
    first = RES_STAGES.index(stages[0]) if stages and stages[0] in RES_STAGES else 0
    if cfg.MODEL.BACKBONE.NAME in LAST_LEVEL and (not stages or stages != RES_STAGES[first:][: len(stages)]):
        _wrong("MODEL.FPN.IN_FEATURES", "stages that follow one another, from res2 to res5", stages)


def crop(cfg, builtin):
    keys = cfg.INPUT.CROP
    if not keys.ENABLED:
        return
    low, high = keys.SIZE
    if keys.TYPE.startswith("relative") and max(low, high) > 1:
        _wrong("INPUT.CROP.SIZE", f"shares of the sides, at most 1, with INPUT.CROP.TYPE {keys.TYPE}", list(keys.SIZE))
    if keys.TYPE.startswith("absolute") and (low != int(low) or high != int(high)):
        _wrong("INPUT.CROP.SIZE", f"whole numbers of pixels with INPUT.CROP.TYPE {keys.TYPE}", list(keys.SIZE))
    if keys.TYPE == "absolute_range" and low > high:
        _wrong("INPUT.CROP.SIZE", "the lower limit first", list(keys.SIZE))


def levels(cfg, builtin):
    """Each part's levels exist, finest first; boxes are pooled from levels that follow one another."""
    names = level_names(cfg)
    for key, found in in_features(cfg).items():
        if names is None:
            if builtin:
                _wrong(key, "the levels of a feature pyramid", found, BUILTIN_HINT)
            continue
        unknown = [name for name in found if name not in names]
        if unknown:
            _wrong(key, f"names of {names[0]} to {names[-1]}", unknown)
        numbers = [names.index(name) for name in found]
        if key == "MODEL.ROI_HEADS.IN_FEATURES" and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            _wrong(key, "levels that follow one another, finest first", found)
        if any(a >= b for a, b in itertools.pairwise(numbers)):
            _wrong(key, "levels once each, finest first", found)


def per_level(cfg, key: str, levels: int) -> list:
    """``MODEL.ANCHOR_GENERATOR.<key>`` with an entry per level; one entry serves all."""
    values = [list(value) for value in cfg.MODEL.ANCHOR_GENERATOR[key]]
    if len(values) == 1:
        values *= levels
    if len(values) != levels:
        _wrong(f"MODEL.ANCHOR_GENERATOR.{key}", f"1 or {levels} entries, one per level", values)
    return values


def anchors(cfg, builtin):
    if FIXED_ANCHORS.certain(cfg):
        part = "RETINANET" if RETINANETS.certain(cfg) else "RPN"
        found = [per_level(cfg, key, len(cfg.MODEL[part].IN_FEATURES)) for key in ("SIZES", "ASPECT_RATIOS")]
        for key, values in zip(("SIZES", "ASPECT_RATIOS"), found):
            if len({len(value) for value in values}) != 1:
                _wrong(f"MODEL.ANCHOR_GENERATOR.{key}", "the same number on every level", values)


def proposals(cfg, builtin):
    if PROPOSING.certain(cfg):
        name, loaded = cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.LOAD_PROPOSALS
        if loaded != (name == PRECOMPUTED):
            what = f"True with MODEL.PROPOSAL_GENERATOR.NAME {PRECOMPUTED} and False otherwise"
            _wrong("MODEL.LOAD_PROPOSALS", what, loaded, f" with {name}")
    elif cfg.MODEL.LOAD_PROPOSALS:
        _wrong("MODEL.LOAD_PROPOSALS", f"False with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}", True)
    if LOADED_PROPOSALS.certain(cfg):
        for split in ("TRAIN", "TEST"):
            files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
            if len(files) != len(names):
                expected = f"{len(names)} files, one for each of DATASETS.{split}"
                _wrong(f"DATASETS.PROPOSAL_FILES_{split}", expected, len(files))
    if RCNN.certain(cfg) and "Cascade" not in cfg.MODEL.ROI_HEADS.NAME and len(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS) != 1:
        _wrong("MODEL.ROI_HEADS.IOU_THRESHOLDS", "one threshold", list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS))


def staged(cfg, builtin):
    keys = cfg.MODEL.STAGED_RPN
    if STAGED.certain(cfg) and keys.BEFORE_FPN:
        if keys.STAGES != 2:
            _wrong("MODEL.STAGED_RPN.STAGES", "2 with BEFORE_FPN", keys.STAGES)
        having = ("build_resnet_fpn_backbone_with_stages", TIMM_BACKBONE)
        if builtin and cfg.MODEL.BACKBONE.NAME not in having:
            _wrong("MODEL.BACKBONE.NAME", f"{' or '.join(having)} with MODEL.STAGED_RPN.BEFORE_FPN",
                   cfg.MODEL.BACKBONE.NAME)  # fmt: skip


def guided(cfg, builtin):
    ga, prefix = cfg.MODEL.GUIDED_ANCHORING, "MODEL.GUIDED_ANCHORING."
    if not GUIDED.certain(cfg):
        return
    if GA_RPN.certain(cfg) and not ga.SHAPE.ENABLED and ga.ADAPTION.OFFSETS == "shape":
        _wrong(prefix + "ADAPTION.OFFSETS", "'features' or 'none' where SHAPE.ENABLED is False", "shape")
    if LOCATED.certain(cfg) and ga.LOCATION.CENTER_RATIO > ga.LOCATION.IGNORE_RATIO:
        _wrong(prefix + "LOCATION.CENTER_RATIO", f"at most IGNORE_RATIO {ga.LOCATION.IGNORE_RATIO}",
               ga.LOCATION.CENTER_RATIO)  # fmt: skip
    if cfg.MODEL.FPN.OUT_CHANNELS % ga.ADAPTION.OFFSET_GROUPS:
        _wrong(prefix + "ADAPTION.OFFSET_GROUPS", f"a divisor of MODEL.FPN.OUT_CHANNELS {cfg.MODEL.FPN.OUT_CHANNELS}",
               ga.ADAPTION.OFFSET_GROUPS)  # fmt: skip


def scopenet(cfg, builtin):
    keys = cfg.MODEL.SCOPENET
    if SCOPENET.certain(cfg) and len(keys.TARGETS.RANGES) != len(keys.IN_FEATURES) - 1:
        expected = f"{len(keys.IN_FEATURES) - 1} limits between the {len(keys.IN_FEATURES)} levels of IN_FEATURES"
        _wrong("MODEL.SCOPENET.TARGETS.RANGES", expected, list(keys.TARGETS.RANGES))


def group_norms(cfg, builtin):
    """GroupNorm has 32 groups."""
    parts = {"MODEL.FPN.NORM": True, "MODEL.RETINANET.NORM": RETINANETS.certain(cfg),
             "MODEL.SCOPENET.NORM": SCOPENET.certain(cfg)}  # fmt: skip
    for key, read in parts.items():
        if read and get(cfg, key) == "GN" and cfg.MODEL.FPN.OUT_CHANNELS % 32:
            _wrong("MODEL.FPN.OUT_CHANNELS", f"a multiple of 32 with {key} GN", cfg.MODEL.FPN.OUT_CHANNELS)


def ignore_regions(cfg, builtin):
    """detectron2's own heads know no ignore regions."""
    if builtin or not cfg.DATASETS.IGNORE_REGIONS:
        return
    parts = []
    if RPNS.certain(cfg) and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        parts.append("MODEL.PROPOSAL_GENERATOR.NAME RPN")
    if RCNN.certain(cfg) and not cfg.MODEL.ROI_HEADS.NAME.startswith("GuidedAnchoring"):
        parts.append(f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME}")
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        parts.append("MODEL.META_ARCHITECTURE RetinaNet")
    if parts:
        _wrong("DATASETS.IGNORE_REGIONS", f"False with detectron2's {', '.join(parts)}", True,
               "; the built-in engine (--engine torchvision) has them")  # fmt: skip


def amp(cfg, builtin):
    if not builtin and cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        hint = ": detectron2 trains so on CUDA, the built-in engine (--engine torchvision) on a CPU, too"
        _wrong("SOLVER.AMP.ENABLED", f"False on {cfg.MODEL.DEVICE}", True, hint)


def patience(cfg, builtin):
    if cfg.TEST.PATIENCE and not (cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        _wrong("TEST.PATIENCE", "0 without TEST.BEST_METRIC, TEST.EVAL_PERIOD and DATASETS.TEST", cfg.TEST.PATIENCE)


def priors(cfg, builtin):
    """A logit has none of 0 and 1."""
    for part, when in {"RETINANET": RETINANETS, "SCOPENET": SCOPENET}.items():
        if when.certain(cfg) and not 0 < cfg.MODEL[part].PRIOR_PROB < 1:
            _wrong(f"MODEL.{part}.PRIOR_PROB", "a number between 0 and 1", cfg.MODEL[part].PRIOR_PROB)


def momentum(cfg, builtin):
    if cfg.SOLVER.OPTIMIZER == "SGD" and cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        _wrong("SOLVER.NESTEROV", "False with SOLVER.MOMENTUM 0", True)


RULES = (
    limits,
    priors,
    momentum,
    pixels,
    crop,
    resnet,
    pyramid,
    levels,
    anchors,
    proposals,
    staged,
    guided,
    scopenet,
    group_norms,
    ignore_regions,
    amp,
    patience,
)
