"""Configurations that cannot work, and keys that nothing reads: one line with the key, in both engines."""

import itertools
import sys

import pytest
import torch

from ga_scope.cli import end_well
from ga_scope.config import SCHEMA, flat
from ga_scope.data import load_coco_json
from ga_scope.engines import get_engine, resolved
from ga_scope.engines.base import output_folder
from ga_scope.engines.solver import build_lr_schedule
from ga_scope.errors import ConfigError, DatasetError, InputError

from .conftest import CONFIGS, ENGINES, SHAPES, config, overrides, run, setup

CPU = ["MODEL.DEVICE", "cpu"]
# Fast R-CNN's configurations are not whole without files.
FILES = ["DATASETS.PROPOSAL_FILES_TRAIN", "('a',)", "DATASETS.PROPOSAL_FILES_TEST", "('b',)"]


def options(key, value):
    return [*CPU, key, value if isinstance(value, str) else repr(value)]


# ---- the command line, whole: exit, one line, no traceback ------------------------------------------

GA_FASTER = [
    (["MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY: no such key"),
    (["MODEL.RESNETS.DEPTH", "20"], "MODEL.RESNETS.DEPTH: expected 18, 34, 50, 101, 152, got 20"),
    (["SOLVER.OPTIMIZER", "LION"], "SOLVER.OPTIMIZER: expected 'SGD', 'ADAMW', got 'LION'"),
    (["MODEL.RPN.IN_FEATURES", "['res4']"], r"MODEL.RPN.IN_FEATURES: expected names of p2 to p6, got \['res4'\]"),
    (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE: cuda is not available here; append MODEL.DEVICE cpu"),
    (["SOLVER.MAX_ITER"], "overrides: expected KEY VALUE pairs, got 'SOLVER.MAX_ITER' without a value"),
    (["SOLVER.MAX_ITER", "'many'"], "SOLVER.MAX_ITER: expected a whole number, got 'many'"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN: expected at least one dataset"),
    (["DATASETS.TRAIN", "('nowhere',)"], "no dataset 'nowhere'"),
    (["DATASETS.TRAIN", "('coco_2017_train',)"], "instances_train2017.json: no such annotation file"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "MODEL.ROI_HEADS.NUM_CLASSES: expected 5, the categories of"),
    (["MODEL.WEIGHTS", "/nowhere/model.pth"], "/nowhere/model.pth: no such checkpoint"),
    (
        ["MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS", "shapes"],
        "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS: expected 'shape', 'features', 'none', got 'shapes'",
    ),
    (["MODEL.GUIDED_ANCHORING.SHAPE.MODE", "all"], "SHAPE.MODE: expected 'sampled', 'exact', got 'all'"),
    (
        ["MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD", "2.0"],
        "LOCATION.THRESHOLD: expected a number from 0 to 1, got 2.0",
    ),
    (
        ["MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST", "-1"],
        "LOCATION.TOPK_TEST: expected a whole number of at least 0, got -1",
    ),
]
SCOPENET = [
    (["MODEL.SCOPENET.NUM_CLASSES", "80"], "MODEL.SCOPENET.NUM_CLASSES: expected 5, the categories of"),
    (["MODEL.SCOPENET.NORM", "BN"], "MODEL.SCOPENET.NORM: expected '', 'GN', got 'BN'"),
    (["MODEL.SCOPENET.RESCORE", "max"], "MODEL.SCOPENET.RESCORE: expected 'none', 'mean', 'distribution', got 'max'"),
    (["MODEL.SCOPENET.BINS.TARGETS", "hard"], "MODEL.SCOPENET.BINS.TARGETS: expected 'one_hot', 'soft', got 'hard'"),
    (["MODEL.SCOPENET.BINS.NUM", "0"], "MODEL.SCOPENET.BINS.NUM: expected a whole number of at least 1, got 0"),
    (["MODEL.SCOPENET.BINS.SIZE", "0.0"], "MODEL.SCOPENET.BINS.SIZE: expected a number above 0, got 0.0"),
    (["MODEL.SCOPENET.LOSS.BOX", "l1"], "MODEL.SCOPENET.LOSS.BOX: expected 'iou', 'giou', 'diou', got 'l1'"),
    (["MODEL.SCOPENET.TARGETS.RANGES", "[64]"], r"MODEL.SCOPENET.TARGETS.RANGES: expected 4 limits .* got \[64\]"),
    (["MODEL.SCOPENET.IN_FEATURES", "['p2', 'p6']"], "MODEL.SCOPENET.IN_FEATURES: expected names of p3 to p7"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name, opts, message", [*(("ga_faster_rcnn", *row) for row in GA_FASTER), *(("scopenet", *row) for row in SCOPENET)]
)
def test_bad_configurations_are_named(name, opts, message, engine, shapes, tmp_path):
    if torch.cuda.is_available() and "cuda" in opts:
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit, match=message) as error:
        run(name, engine, [*overrides(shapes, tmp_path), *opts])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, opts, message",
    [
        ("ga_faster_rcnn", ["MODEL.MASK_ON", "True"], "MODEL.MASK_ON: expected False, got True: .*detectron2"),
        (
            "ga_faster_rcnn",
            ["MODEL.BACKBONE.NAME", "vit"],
            "BACKBONE.NAME: expected 'build_resnet_fpn_backbone'.*'vit'",
        ),
        ("ga_faster_rcnn", ["MODEL.META_ARCHITECTURE", "YOLO"], "META_ARCHITECTURE: expected .*'ScopeNet', got 'YOLO'"),
        (
            "ga_faster_rcnn",
            ["INPUT.FORMAT", "L"],
            "FORMAT: expected 'BGR', 'RGB', got 'L'.*built-in engine cannot",
        ),
        ("scopenet", ["MODEL.FPN.IN_FEATURES", "['res4', 'res5']"], "MODEL.FPN.IN_FEATURES: expected"),
        ("rpn", ["MODEL.RESNETS.DEPTH", "50"], "RES2_OUT_CHANNELS: expected 256 for depth 50, got 64"),
    ],
)
def test_what_the_built_in_engine_does_not_have_is_named(name, opts, message):
    with pytest.raises(ConfigError, match=message):
        setup(name, [*CPU, *opts])


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name, key, value, expected",
    [
        ("ga_faster_rcnn", "MODEL.META_ARCHITECTURE", "YOLO", "registered with detectron2 .*ScopeNet.*, got 'YOLO'"),
        ("ga_faster_rcnn", "MODEL.BACKBONE.NAME", "vit", "registered with detectron2 .*, got 'vit'"),
        ("ga_faster_rcnn", "MODEL.PROPOSAL_GENERATOR.NAME", "RPM", "registered with detectron2 .*StagedRPN.*, got"),
        ("ga_faster_rcnn", "MODEL.ROI_HEADS.NAME", "Heads", "registered with detectron2 .*StandardROIHeads.*, got"),
        ("ga_faster_rcnn", "MODEL.ROI_BOX_HEAD.NAME", "Head", "registered with detectron2 .*FastRCNNConvFCHead.*, got"),
        ("faster_rcnn", "MODEL.RPN.HEAD_NAME", "Head", "registered with detectron2 .*StandardRPNHead.*, got 'Head'"),
        ("faster_rcnn", "MODEL.ANCHOR_GENERATOR.NAME", "Any", "registered with detectron2 .*DefaultAnchorGenerator.*"),
        ("faster_rcnn", "MODEL.FPN.NORM", "Batch", "'', 'BN', .*'LN', got 'Batch'"),
        ("faster_rcnn", "MODEL.FPN.IN_FEATURES", ["res2", "res4"], "stages that follow one another, from res2 to res5"),
        ("faster_rcnn", "MODEL.FPN.IN_FEATURES", [], "stages that follow one another, from res2 to res5"),
        ("faster_rcnn", "MODEL.RESNETS.OUT_FEATURES", ["res6"], "each 'stem', 'res2', 'res3', 'res4', 'res5', got"),
    ],
)
def test_what_detectron2_does_not_have_is_named(name, key, value, expected):
    with pytest.raises(ConfigError, match=f"{key}: expected .*{expected}"):
        setup(name, options(key, value), "detectron2")


@pytest.mark.detectron2
def test_of_a_users_own_components_nothing_is_known():
    """Registered with detectron2, they may read any key, and no rule about this project's parts is theirs."""
    from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
    from torch import nn

    class MineForTests(nn.Module):
        pass

    for registry in (META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY):
        if "MineForTests" not in registry:
            registry.register(MineForTests)
    keys = {"MODEL.STAGED_RPN.STAGES": 2, "MODEL.RETINANET.NORM": "BN", "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou"}
    keys |= {"MODEL.RPN.IN_FEATURES": ["mine"], "MODEL.RETINANET.IN_FEATURES": ["mine"], "MODEL.FPN.OUT_CHANNELS": 30}
    for part in ("META_ARCHITECTURE", "PROPOSAL_GENERATOR.NAME"):
        others = ("STAGED_RPN",) if part == "META_ARCHITECTURE" else ("RETINANET",)  # of the parts that are known
        mine = {key: value for key, value in keys.items() if key.split(".")[1] not in others}
        opts = [text for key, value in mine.items() for text in (key, str(value))]
        cfg = flat(setup("faster_rcnn", [*CPU, f"MODEL.{part}", "MineForTests", *opts], "detectron2"))
        assert {key: cfg[key] for key in mine} == mine


@pytest.mark.detectron2
def test_features_that_a_backbone_without_a_pyramid_does_not_have_are_named():
    with pytest.raises(ConfigError, match=r"MODEL.RPN.IN_FEATURES: expected names of res2 to res5, got \['p2'"):
        setup("faster_rcnn", options("MODEL.BACKBONE.NAME", "build_resnet_backbone"), "detectron2")


@pytest.mark.detectron2
def test_mixed_precision_of_detectron2_is_for_gpus():
    with pytest.raises(ConfigError, match="SOLVER.AMP.ENABLED: expected False on cpu, got True.*--engine torchvision"):
        setup("ga_rpn", [*CPU, "SOLVER.AMP.ENABLED", "True"], "detectron2")


# ---- A7, case_14, case_16: values that cannot work ---------------------------------------------------

IMPOSSIBLE = [
    ("SOLVER.IMS_PER_BATCH", 0, "a whole number of at least 1"),
    ("SOLVER.IMS_PER_BATCH", -2, "a whole number of at least 1"),
    ("SOLVER.MAX_ITER", 0, "a whole number of at least 1"),
    ("SOLVER.BASE_LR", 0.0, "a number above 0"),
    ("SOLVER.BASE_LR", -0.1, "a number above 0"),
    ("SOLVER.BASE_LR", "1e999", "a number above 0"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "a whole number of at least 1"),
    ("SOLVER.WARMUP_ITERS", -1, "a whole number of at least 0"),
    ("SOLVER.WARMUP_FACTOR", 2.0, "a number from 0 to 1"),
    ("SOLVER.WARMUP_METHOD", "quadratic", "'linear', 'constant'"),
    ("SOLVER.WEIGHT_DECAY", -1.0, "a number of at least 0"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0, "a number above 0"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "sum", "'value', 'norm', 'full_model'"),
    ("TEST.DETECTIONS_PER_IMAGE", 0, "a whole number of at least 1"),
    ("TEST.EVAL_PERIOD", -1, "a whole number of at least 0"),
    ("SEED", -2, "a whole number of at least -1"),
    ("DATALOADER.NUM_WORKERS", -1, "a whole number of at least 0"),
    ("INPUT.MIN_SIZE_TRAIN", (), "1 or more values"),
    ("INPUT.MIN_SIZE_TRAIN", (-5,), "1 or more values, each a whole number of at least 0"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "any", "'choice', 'range'"),
    ("INPUT.MAX_SIZE_TRAIN", 0, "a whole number of at least 1"),
    ("INPUT.MIN_SIZE_TEST", -1, "a whole number of at least 0"),
    ("INPUT.RANDOM_FLIP", "diagonal", "'horizontal'"),
    ("MODEL.PIXEL_MEAN", [1.0] * 4, "3 numbers, one per channel of INPUT.FORMAT"),
    ("MODEL.PIXEL_STD", [1.0] * 2, "3 numbers, one per channel of INPUT.FORMAT"),
    ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "a list of values, each a number above 0"),
    ("MODEL.DEVICE", "gpu", "cpu, cuda, cuda:0 ..., mps or auto"),
    ("MODEL.RESNETS.OUT_FEATURES", ["res2"], "RESNETS.OUT_FEATURES: expected all of MODEL.FPN.IN_FEATURES"),
    ("MODEL.BACKBONE.FREEZE_AT", -1, "a whole number of at least 0"),
    ("MODEL.FPN.OUT_CHANNELS", 0, "a whole number of at least 1"),
    ("MODEL.FPN.OUT_CHANNELS", 30, "OFFSET_GROUPS: expected a divisor of MODEL.FPN.OUT_CHANNELS 30, got 4"),
    ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 0, "a whole number of at least 1"),
    ("MODEL.RPN.POSITIVE_FRACTION", 1.5, "a number from 0 to 1"),
    ("MODEL.RPN.IOU_THRESHOLDS", [0.5], "2 values, each a number above 0 and of at most 1, in ascending order"),
    ("MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3], "2 values, each a number above 0 and of at most 1, in ascending order"),
    ("MODEL.RPN.NMS_THRESH", 1.7, "a number from 0 to 1"),
    ("MODEL.RPN.POST_NMS_TOPK_TEST", 0, "a whole number of at least 1"),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", [1.0, 1.0, 0.0, 1.0], "4 values, each a number above 0"),
    ("MODEL.RPN.IN_FEATURES", ["p2", "p2"], "levels once each, finest first"),
    ("MODEL.RPN.IN_FEATURES", ["p4", "p3"], "levels once each, finest first"),
    ("MODEL.RPN.IN_FEATURES", [], "1 or more values"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"], "levels that follow one another, finest first"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p5"], "levels that follow one another, finest first"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p5", "p4", "p3", "p2"], "levels that follow one another, finest first"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p2"], "levels that follow one another, finest first"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p9"], r"names of p2 to p6, got \['p9'\]"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5, 0.6], "one threshold"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [1.5], ".*each a number above 0 and of at most 1"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.0], ".*each a number above 0 and of at most 1"),
    ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, "a whole number of at least 1"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "a whole number of at least 1"),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0, "a whole number of at least 1"),
    ("MODEL.GUIDED_ANCHORING.SIGMA", 0.0, "a number above 0"),
    ("MODEL.GUIDED_ANCHORING.SHAPE.IOU_THRESHOLDS", [0.7, 0.3], ".*in ascending order"),
    ("MODEL.GUIDED_ANCHORING.LOCATION.CENTER_RATIO", 0.6, "at most IGNORE_RATIO 0.5"),
    ("MODEL.LOAD_PROPOSALS", True, "True with MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals and False otherwise"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key, value, expected", IMPOSSIBLE)
def test_impossible_values_are_named(engine, key, value, expected):
    expected = expected if "expected" in expected else f"{key}: expected {expected}"
    with pytest.raises(ConfigError, match=expected) as error:
        setup("ga_faster_rcnn", options(key, value), engine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name, key, value, expected",
    [
        ("faster_rcnn", "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]], "1 or 5 entries, one per level"),
        ("faster_rcnn", "MODEL.ANCHOR_GENERATOR.SIZES", [[]], "1 or more values, each 1 or more values"),
        ("faster_rcnn", "MODEL.ANCHOR_GENERATOR.SIZES", [[-16]], "each a number above 0"),
        ("rpn_focal", "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32, 33], [64], [128], [256]], "the same number on every"),
        ("rpn_refine", "MODEL.STAGED_RPN.STAGES", 1, "2 with BEFORE_FPN"),
        ("rpn_iterative", "MODEL.STAGED_RPN.STAGES", 3, "1, 2, got 3"),
        ("retinanet", "MODEL.RETINANET.IOU_THRESHOLDS", [0.5, 0.4], "in ascending order"),
        ("retinanet", "MODEL.RETINANET.PRIOR_PROB", 1.2, "a number from 0 to 1"),
        ("retinanet", "MODEL.RETINANET.PRIOR_PROB", 0.0, "a number between 0 and 1"),
        ("scopenet", "MODEL.SCOPENET.PRIOR_PROB", 1.0, "a number between 0 and 1"),
        ("scopenet", "MODEL.SCOPENET.BINS.SIZE", 1e12, "at most 16"),
        ("rpn", "MODEL.FPN.OUT_CHANNELS", 10**9, "at most 4096"),
        ("rpn", "MODEL.RPN.POST_NMS_TOPK_TEST", 2**63, "at most 2147483647"),
        ("rpn", "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [1e38], [256]], "at most 65536"),
        ("rpn", "DATALOADER.NUM_WORKERS", 10**6, "at most 256"),
        ("rpn", "MODEL.RESNETS.NUM_GROUPS", 2, "1 for depth 18"),
        ("retinanet", "MODEL.FPN.OUT_CHANNELS", 40, "a multiple of 32 with MODEL.RETINANET.NORM GN"),
        ("scopenet", "MODEL.FPN.OUT_CHANNELS", 40, "a multiple of 32 with MODEL.SCOPENET.NORM GN"),
        ("scopenet", "MODEL.SCOPENET.IN_FEATURES", ["p4", "p3", "p5", "p6", "p7"], "once each, finest first"),
        ("scopenet", "MODEL.SCOPENET.TARGETS.RANGES", [64, 64, 256, 512], "in ascending order"),
        ("scopenet", "MODEL.LOAD_PROPOSALS", True, "False with MODEL.META_ARCHITECTURE ScopeNet"),
        ("ga_retinanet", "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSET_GROUPS", 7, "a divisor of MODEL.FPN.OUT_CHANNELS 96"),
        ("rpn_iterative", "SOLVER.LR_SCHEDULER_NAME", "Cosine", "'WarmupMultiStepLR', 'WarmupCosineLR'"),
    ],
)
def test_impossible_values_of_other_models_are_named(engine, name, key, value, expected):
    with pytest.raises(ConfigError, match=f"{key.rsplit('.', 1)[1]}: expected .*{expected}"):
        setup(name, options(key, value), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_output_folder_that_is_a_file_is_named(engine, shapes, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="OUTPUT_DIR: expected a folder, got .*out: File exists"):
        run("ga_rpn", engine, overrides(shapes, tmp_path / "out"))


def test_names_with_a_zero_byte_are_named():
    """The system has an error of its own kind for them."""
    with pytest.raises(ConfigError, match="OUTPUT_DIR: expected a folder, got "):
        output_folder(setup("rpn", [*CPU, "OUTPUT_DIR", "a\0b"]))
    with pytest.raises(InputError, match=r"a\\x00b: "):
        load_coco_json("a\0b", "")


def test_momentum_of_nesterovs_kind():
    with pytest.raises(ConfigError, match="SOLVER.NESTEROV: expected False with SOLVER.MOMENTUM 0, got True"):
        setup("rpn", [*CPU, "SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0"])


def test_a_fall_of_the_learning_rate_at_the_very_end():
    """Has no effect, and is no error."""
    more = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "1"]
    for steps in ("(1,)", "(1, 2)", "()"):
        schedule = build_lr_schedule(setup("rpn", [*CPU, *more, "SOLVER.STEPS", steps]))
        assert schedule(0.0) == schedule(0.99) == 1
    with pytest.raises(ConfigError, match="SOLVER.STEPS: expected a list of values, .*, in ascending order, got"):
        setup("rpn", [*CPU, *more, "SOLVER.STEPS", "(5, 5)"])


# As torch hands on what a loader's process raised.
OF_A_WORKER = (
    "Caught DatasetError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    "ga_scope.errors.DatasetError: a.png: missing"
)


@pytest.mark.parametrize(
    "error, line",
    [
        (MemoryError(), "out of memory .*: try a smaller SOLVER.IMS_PER_BATCH"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory .*: try a smaller"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory .*: try a smaller"),
        (ValueError("Expected more than 1 value per channel when training, got input size"), "^MODEL: a normalisation"),
        (OSError(28, "No space left on device", "/x"), "^/x: No space left on device$"),
        (DatasetError("a.json:\n  broken"), "^DatasetError: a.json:   broken$"),
        (DatasetError(OF_A_WORKER), "^DatasetError: a.png: missing$"),
        (ConfigError("KEY: " + "x" * 10**6), "^ConfigError: KEY: x.* ... x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("debug", [False, True])
def test_what_a_user_sees_of_an_error(error, line, debug, monkeypatch, capsys):
    """One line; --debug has the traceback, too. What is wrong with the program itself is a traceback either way."""
    monkeypatch.setattr(sys, "argv", ["train_net.py", *["--debug"] * debug])

    def command():
        raise error

    with pytest.raises(SystemExit, match=line) as end:
        end_well(command)
    assert str(end.value).isprintable() and len(str(end.value)) < 1100
    assert ("Traceback" in capsys.readouterr().err) == debug
    with pytest.raises(ZeroDivisionError):
        end_well(lambda: 1 / 0)
    with pytest.raises(ValueError, match="^invalid literal"):
        end_well(lambda: int("x"))


# ---- A8: keys that nothing reads ---------------------------------------------------------------------

UNREAD = [
    ("rpn", "MODEL.STAGED_RPN.STAGES", 2),
    ("rpn", "MODEL.STAGED_RPN.BOX_LOSS", "bounded_iou"),
    ("faster_rcnn", "MODEL.STAGED_RPN.OBJECTNESS_LOSS", "focal"),
    ("faster_rcnn", "MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE", 100),
    ("faster_rcnn", "MODEL.GUIDED_ANCHORING.SIGMA", 6.0),
    ("rpn", "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD", 0.2),
    ("rpn_focal", "MODEL.GUIDED_ANCHORING.SHAPE.MODE", "exact"),
    ("ga_rpn", "MODEL.STAGED_RPN.STAGES", 2),
    ("ga_rpn", "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]),
    ("ga_rpn", "MODEL.ROI_HEADS.NUM_CLASSES", 7),
    ("ga_rpn", "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.SHAPE.SIZE_RANGE", [0.5, 3.0]),
    ("ga_rpn", "MODEL.RETINANET.NUM_CONVS", 1),
    ("ga_rpn", "MODEL.SCOPENET.RESCORE", "none"),
    ("ga_retinanet", "MODEL.GUIDED_ANCHORING.CONV", True),
    ("ga_retinanet", "MODEL.GUIDED_ANCHORING.LOCATION.ENABLED", False),
    ("ga_retinanet", "MODEL.GUIDED_ANCHORING.SHAPE.ENABLED", False),
    ("ga_retinanet", "MODEL.RPN.NMS_THRESH", 0.5),
    ("retinanet", "MODEL.RPN.IN_FEATURES", ["p3"]),
    ("retinanet", "MODEL.GUIDED_ANCHORING.CELL_OFFSET", 0.0),
    ("retinanet", "MODEL.PROPOSAL_GENERATOR.NAME", "GuidedAnchoringRPN"),
    ("scopenet", "MODEL.RETINANET.NUM_CLASSES", 7),
    ("scopenet", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    ("scopenet", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
    ("scopenet", "MODEL.SCOPENET.LOSS.QUALITY_WEIGHT", 2.0),
    ("scopenet_direct", "MODEL.SCOPENET.BINS.SIZE", 0.75),
    ("scopenet_direct", "MODEL.SCOPENET.RESCORE", "none"),
    ("scopenet_direct", "MODEL.SCOPENET.BINS.UNCERTAINTY", False),
    ("faster_rcnn", "DATASETS.PROPOSAL_FILES_TEST", ("p.npz",)),
    ("faster_rcnn", "SOLVER.GAMMA", 0.5),
    ("faster_rcnn", "SOLVER.STEPS", (10,)),
    ("faster_rcnn", "SOLVER.NESTEROV", True),
    ("faster_rcnn", "SOLVER.MOMENTUM", 0.5),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name, key, value", UNREAD)
def test_a_key_that_nothing_reads_is_an_error(engine, name, key, value):
    with pytest.raises(ConfigError, match=f"^{key}: expected .*, its default, got .*: only .* reads it$"):
        setup(name, options(key, value), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name, key, value", UNREAD)
def test_its_default_is_none(engine, name, key, value):
    """Saying what is so anyway misleads nobody."""
    default = SCHEMA.keys[key].default
    assert default != value
    setup(name, options(key, default), engine)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "key, value", [("TEST.AUG.ENABLED", True), ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]])]
)
def test_what_only_detectron2s_own_tools_read_is_an_error(key, value):
    with pytest.raises(ConfigError, match=f"{key}: expected "):
        setup("faster_rcnn", options(key, value), "detectron2")


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name, key, value, expected",
    [
        ("ga_rpn", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1' with .*GuidedAnchoringRPN, got 'giou'"),
        ("ga_rpn", "MODEL.RPN.CONV_DIMS", [64, 64], r"\[-1\] with .*GuidedAnchoringRPN, got \[64, 64\]"),
        ("ga_rpn", "MODEL.RPN.BOUNDARY_THRESH", 0, "-1 with .*GuidedAnchoringRPN, got 0"),
        ("ga_rpn", "MODEL.RPN.HEAD_NAME", "MyHead", "'StandardRPNHead' with .*GuidedAnchoringRPN, got 'MyHead'"),
        ("rpn_focal", "MODEL.RPN.IOU_LABELS", [0, 0, 1], r"\[0, -1, 1\] with .*StagedRPN.*, got \[0, 0, 1\]"),
        ("rpn_focal", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1' with .*StagedRPN.*, got 'giou'"),
        ("rpn_focal", "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5, "0.0 with .*StagedRPN.*, got 0.5"),
        ("rpn_focal", "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "'DefaultAnchorGenerator' with .*, got"),
        ("rpn_focal", "MODEL.STAGED_RPN.BOX_LOSS", "l2", "'smooth_l1', 'bounded_iou', got 'l2'"),
        ("ga_retinanet", "MODEL.RETINANET.NORM", "BN", "'', 'GN' with .*GuidedAnchoringRetinaNet, got 'BN'"),
        ("ga_retinanet", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1' with .*, got 'giou'"),
    ],
)
def test_keys_that_the_projects_parts_do_not_have_are_refused_in_detectron2_too(name, key, value, expected):
    """detectron2's own parts read them; ignored, they would mean something to the user and nothing to the model."""
    with pytest.raises(ConfigError, match=f"{key}: expected {expected}"):
        setup(name, options(key, value), "detectron2")


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name, key, value",
    [
        ("rpn", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"),
        ("rpn", "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        ("retinanet", "MODEL.RETINANET.NORM", "BN"),
        ("faster_rcnn", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
        ("faster_rcnn", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
)
def test_detectron2s_own_parts_have_them(name, key, value):
    assert flat(setup(name, options(key, value), "detectron2"))[key] == value
    with pytest.raises(ConfigError, match=f"{key}: expected .*the built-in engine cannot honour it; detectron2"):
        setup(name, options(key, value), "torchvision")


# ---- files -------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def make(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


BASE = f"_BASE_: {CONFIGS}/shapes/faster_rcnn_R_18_FPN.yaml\n"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "text, message",
    [
        ("", "mine.yaml: expected keys and their values, got NoneType"),
        ("# nothing\n", "mine.yaml: expected keys and their values, got NoneType"),
        ("- a\n- b\n", "mine.yaml: expected keys and their values, got list"),
        ("just text", "mine.yaml: expected keys and their values, got str"),
        ("MODEL: {\n", "mine.yaml: not a configuration: "),
        ("MODEL:\n\tDEVICE: cpu\n", "mine.yaml: not a configuration: "),
        ("MODEL: !!python/object/apply:os.getcwd []\n", "mine.yaml: not a configuration: .*python/object"),
        ("_BASE_: mine.yaml\n", "mine.yaml: builds on itself: .*mine.yaml -> .*mine.yaml"),
        ("_BASE_: absent.yaml\n", "absent.yaml: no such configuration file"),
        ("_BASE_: 7\nSEED: 1\n", "_BASE_"),
        (BASE + "MODEL: 3\n", "mine.yaml: MODEL: expected keys, got 3"),
        (BASE + "SOLVER:\n  MAX_ITER:\n    A: 1\n", "mine.yaml: SOLVER.MAX_ITER.A: no such key"),
        (BASE + "SOLVER:\n  MAX_ITER: many\n", "mine.yaml: SOLVER.MAX_ITER: expected a whole number, got 'many'"),
        (BASE + "SOLVER:\n  MAX_ITER: true\n", "mine.yaml: SOLVER.MAX_ITER: expected a whole number, got True"),
        (BASE + "SOLVER:\n  MAX_ITR: 3\n", "mine.yaml: SOLVER.MAX_ITR: no such key"),
        (BASE + "MODEL:\n  STAGED_RPN:\n    STAGES: 2\n", "MODEL.STAGED_RPN.STAGES: .* only .* reads it"),
    ],
)
def test_bad_files_are_named(engine, text, message, write):
    with pytest.raises(InputError, match=message) as error:
        get_engine(engine).setup(write(text), CPU)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00MODEL")
    with pytest.raises(ConfigError, match="mine.yaml: cannot be read"):
        get_engine("torchvision").setup(tmp_path / "mine.yaml", CPU)
    with pytest.raises(ConfigError, match="cannot be read"):
        get_engine("torchvision").setup(tmp_path, CPU)


def test_a_loop_of_several_files_is_named(write):
    write("_BASE_: mine.yaml\n", "other.yaml")
    with pytest.raises(ConfigError, match="mine.yaml: builds on itself: .*mine.yaml -> .*other.yaml -> .*mine.yaml"):
        get_engine("torchvision").setup(write("_BASE_: other.yaml\n"), CPU)


def test_files_build_on_one_another(write):
    """The nearest says last; two bases merge in order; a base may be there twice without being a loop."""
    write(BASE + "SOLVER:\n  MAX_ITER: 11\n  WARMUP_ITERS: 5\n", "a.yaml")
    write("_BASE_: a.yaml\nSOLVER:\n  MAX_ITER: 22\n", "b.yaml")
    path = write("_BASE_: [a.yaml, b.yaml]\nSOLVER:\n  WARMUP_FACTOR: 1\n")
    cfg = get_engine("torchvision").setup(path, [*CPU, "SOLVER.BASE_LR", "1e-4"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (22, 5, 1.0)
    assert cfg.SOLVER.BASE_LR == 1e-4 and isinstance(cfg.SOLVER.WARMUP_FACTOR, float)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_base_sets_for_other_models_goes_back_to_its_default(engine):
    """configs/shapes has one base for all: that is no mistake, and what a run reports of itself is the truth."""
    for name in SHAPES:
        more = FILES if "fast_rcnn" in name or "finetune" in name else []
        cfg = setup(name, [*CPU, *more], engine)
        known = flat(cfg)
        for key in SCHEMA.keys.values():
            if key.name in known and not SCHEMA.is_read(cfg, key.name):
                assert known[key.name] == key.default, (name, key.name)
    assert setup("rpn", CPU, engine).MODEL.GUIDED_ANCHORING.SIGMA == 8.0
    assert setup("ga_rpn", CPU, engine).MODEL.GUIDED_ANCHORING.SIGMA == 4.0


def test_unknown_keys_in_a_file_are_named(write):
    path = write("MODEL:\n  ROI_KEYPOINT_HEAD:\n    NUM_KEYPOINTS: 17\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: MODEL.ROI_KEYPOINT_HEAD.*no such key.*built-in engine cannot"):
        get_engine("torchvision").setup(path)
    with pytest.raises(ConfigError, match="absent.yaml: no such configuration file"):
        get_engine("torchvision").setup("absent.yaml")


# ---- engines -----------------------------------------------------------------------------------------


def test_engines_by_name(monkeypatch):
    assert resolved("torchvision") == "torchvision"
    with pytest.raises(ConfigError, match="--engine: expected auto, detectron2, torchvision, got 'jax'"):
        resolved("jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolved("auto") == "torchvision"
    with pytest.raises(ConfigError, match="--engine detectron2: detectron2 is not installed"):
        resolved("detectron2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert resolved("auto") == resolved("detectron2") == "detectron2"


# ---- the schema --------------------------------------------------------------------------------------


def test_every_default_is_a_value_that_its_key_takes():
    """Within what the built-in engine has, or a configuration would have to say it."""
    names = [key.name for key in SCHEMA.keys.values()]
    assert len(names) == len(set(names)) > 180
    for key in SCHEMA.keys.values():
        assert key.check.accepts(key.default), key.name
        assert key.check.expected and (key.text or key.builtin is not None or "NUM_CLASSES" in key.name), key.name


def test_every_condition_says_what_it_means():
    """ "only ... reads it" names keys that exist, with values that they take."""
    for key in SCHEMA.keys.values():
        if key.when is None:
            continue
        for part in key.when.text.replace(", or ", " with ").rstrip(",").split(" with "):
            name, *values = part.split(" ", 1)
            assert name in SCHEMA.keys and values, (key.name, key.when.text)


@pytest.mark.parametrize("name", ["faster_rcnn", "ga_retinanet", "scopenet"])
def test_no_value_of_another_kind_is_taken(name):
    """Every key of a model, given text, a number, None or keys where it has something else: an error with its name."""
    cfg, seen = setup(name, CPU), 0
    for (key, value), wrong in itertools.product(flat(cfg).items(), ("'x y'", "3.5", "[[1]]", "{'a': 1}", "None")):
        if not SCHEMA.is_read(cfg, key) or (key == "DATASETS.REGISTER" and wrong == "[[1]]"):
            continue
        same_kind = (
            (isinstance(value, str) and wrong == "'x y'")
            or (isinstance(value, float) and wrong == "3.5")
            or (isinstance(value, (list, tuple)) and wrong == "[[1]]")
        )
        if same_kind:
            continue
        with pytest.raises(InputError, match=key):
            setup(name, [*CPU, key, wrong])
        seen += 1
    assert seen > 300


def test_the_configuration_file_is_named_in_the_first_line(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("ga_rpn", "torchvision", [*overrides(shapes, tmp_path), "MODEL.WEIGHTS", "/nowhere.pth"])
    assert capsys.readouterr().out.splitlines()[0].endswith(f"| config: {config('ga_rpn')}")
