"""detectron2 and the built-in engine: same configuration, same weights, same results."""

import re
from pathlib import Path

import pytest
import torch

from ga_scope.integrations.torchvision import run as builtin
from ga_scope.integrations.torchvision.checkpoint import to_detectron2
from ga_scope.integrations.torchvision.config import get_cfg
from ga_scope.integrations.torchvision.models import build_model
from ga_scope.integrations.torchvision.predictor import Predictor as BuiltinPredictor

from .conftest import config, overrides, randomise

pytestmark = pytest.mark.detectron2

CONFIGS = Path(__file__).parents[2] / "configs"


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_defaults_are_detectron2s():
    """A key that a yaml leaves out means the same to both engines."""
    from detectron2.config import get_cfg as detectron2_cfg

    from ga_scope.config import add_ga_scope_config

    theirs = dict(flat(add_ga_scope_config(detectron2_cfg())))
    for key, value in flat(get_cfg()):
        assert key in theirs, key
        assert value == theirs[key], key


def all_configs():
    return [p for p in sorted(CONFIGS.glob("*/*.yaml")) if "Base" not in p.name]


@pytest.mark.parametrize("path", all_configs(), ids=lambda p: p.stem)
def test_models_have_the_same_parameters(path):
    """Names and shapes of every parameter and buffer, after the translation of checkpoint.py."""
    from detectron2.modeling import build_model as build_detectron2

    from ga_scope.integrations.detectron2 import run as d2

    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    theirs = build_detectron2(d2.setup(str(path), opts)).state_dict()
    ours = to_detectron2(build_model(builtin.setup(str(path), opts)).state_dict())
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.endswith("num_batches_tracked") and "anchor_generator" not in k
    }


@pytest.fixture
def weights(shapes, tmp_path):
    """A checkpoint of the built-in engine's GA-Faster R-CNN with random weights everywhere."""

    def make(config, seed=0):
        cfg = builtin.setup(config, overrides(shapes, tmp_path))
        torch.manual_seed(seed)
        path = tmp_path / "random.pth"
        torch.save({"model": to_detectron2(randomise(build_model(cfg), seed).state_dict())}, path)
        return str(path)

    return make


def assert_same(boxes, scores, other_boxes, other_scores):
    """Boxes to 1e-3 px and scores to 1e-5, in order but for boxes whose scores are that close."""
    assert len(boxes) == len(other_boxes)
    torch.testing.assert_close(scores, other_scores, rtol=0, atol=1e-5)
    if len(boxes):
        apart = (boxes[:, None] - other_boxes).abs().amax(-1)
        same = (apart <= 1e-3) & ((scores[:, None] - other_scores).abs() <= 1e-5)
        assert same.any(0).all() and same.any(1).all()


MODELS = ("rpn", "faster_rcnn", "rpn_9_anchors", "rpn_refine", "ga_rpn", "ga_faster_rcnn", "retinanet", "ga_retinanet")


@pytest.mark.parametrize("name", [f"{model}_R_18_FPN" for model in MODELS])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_same_weights_same_results(name, stride_in_1x1, shapes, tmp_path, weights):
    """Proposals on ten images to 1e-3 px and 1e-5 in score; detections, too."""
    from ga_scope.integrations.detectron2 import run as d2
    from ga_scope.integrations.detectron2.predictor import Predictor as Detectron2Predictor

    config = str(CONFIGS / "shapes" / f"{name}.yaml")
    more = {
        "MODEL.GUIDED_ANCHORING.CONV": stride_in_1x1 and "retinanet" not in name,
        "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.01,
    }
    if stride_in_1x1:
        more |= {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": True, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}
        more |= {"MODEL.RETINANET.NUM_CONVS": 4, "MODEL.RETINANET.NORM": ""}
    more |= {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1}
    more |= {"MODEL.RETINANET.PRIOR_PROB": 0.3, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.2}
    more |= {"MODEL.RETINANET.BBOX_REG_WEIGHTS": (20.0,) * 4, "MODEL.GUIDED_ANCHORING.SHAPE_STD": 0.14}
    opts = overrides(shapes, tmp_path, **more)
    cfg = builtin.setup(config, opts)
    path = tmp_path / "random.pth"
    model = randomise(build_model(cfg))
    for key, parameter in model.named_parameters():
        # Without norms a RetinaNet's outputs grow until scores are all 1 and have no order.
        if stride_in_1x1 and re.search(r"(cls_score|bbox_pred|(classification|regression)\.predict)\.weight", key):
            parameter.data *= 1e-3
    torch.save({"model": to_detectron2(model.state_dict())}, path)
    opts += ["MODEL.WEIGHTS", str(path)]
    ours = BuiltinPredictor(builtin.setup(config, opts))
    theirs = Detectron2Predictor(d2.setup(config, opts))
    records = [
        {"file_name": str(p), "image_id": i, "height": 128, "width": 128}
        for i, p in enumerate(sorted((shapes / "val").glob("*.jpg"))[:10])
    ]
    assert len(records) == 10
    seen = 0
    for record in records:
        a, b = ours(record), theirs(record)
        if "retinanet" not in name:
            assert_same(a.proposals, a.proposal_logits.sigmoid(), b.proposals, b.proposal_logits.sigmoid())
            seen += len(a.proposals)
        if name.startswith("ga"):
            assert len(a.anchors.boxes) == len(b.anchors.boxes) > 0
        seen += len(a.boxes)
        assert_same(a.boxes, a.scores, b.boxes, b.scores)
        assert torch.equal(a.classes.sort().values, b.classes.sort().values)
    assert seen > 20


SCOPENETS = {
    "p6 from res5": {},
    "p6 from p5, no norm": {
        "MODEL.BACKBONE.NAME": "build_scopenet_resnet_fpn_backbone",
        "MODEL.SCOPENET.NORM": "",
    },
    "p2 to p6": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SCOPENET.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.SCOPENET.TARGETS.RANGES": [32, 64, 128, 256],
    },
    "quality": {"MODEL.SCOPENET.RESCORE": "distribution", "MODEL.SCOPENET.BINS.UNCERTAINTY": False},
    "one bin": {"MODEL.SCOPENET.BINS.NUM": 1, "MODEL.FPN.NORM": "GN"},
    "R-50": {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": True, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256},
}


@pytest.mark.parametrize("variant", SCOPENETS)
def test_same_scopenet_same_detections(variant, shapes, tmp_path):
    """Ten images: boxes to 1e-3 px, scores to 1e-5."""
    from ga_scope.integrations.detectron2 import run as d2
    from ga_scope.integrations.detectron2.predictor import Predictor as Detectron2Predictor

    config = str(CONFIGS / "shapes" / "scopenet_R_18_FPN.yaml")
    more = {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200, "MODEL.SCOPENET.PRIOR_PROB": 0.3}
    opts = overrides(shapes, tmp_path, **more, **SCOPENETS[variant])
    path = tmp_path / "random.pth"
    torch.save({"model": to_detectron2(randomise(build_model(builtin.setup(config, opts))).state_dict())}, path)
    opts += ["MODEL.WEIGHTS", str(path)]
    ours, theirs = BuiltinPredictor(builtin.setup(config, opts)), Detectron2Predictor(d2.setup(config, opts))
    seen = 0
    for index, file in enumerate(sorted((shapes / "val").glob("*.jpg"))[:10]):
        record = {"file_name": str(file), "image_id": index, "height": 128, "width": 128}
        a, b = ours(record), theirs(record)
        assert a.proposals is None and b.proposals is None
        assert torch.equal(a.classes, b.classes)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        seen += len(a.boxes)
    assert index == 9 and seen > 100


ENGINES = ("torchvision", "detectron2")


@pytest.mark.parametrize("engine, other", [ENGINES, ENGINES[::-1]])
def test_resuming_in_the_other_engine_is_an_error(engine, other, shapes, tmp_path):
    """The optimizer's state has another form; without it a schedule would begin anew, or go on with a jolt."""
    from ga_scope.train import main

    arguments = ["--config-file", config("ga_rpn")]
    opts = overrides(shapes, tmp_path, **{"DATASETS.TEST": ()})
    main([*arguments, "--engine", engine, *opts])
    with pytest.raises(SystemExit, match=r"model_final.pth: expected (trainer|optimizer) to resume from, got none"):
        main([*arguments, "--engine", other, "--resume", *opts])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name, more, message",
    [
        ("ga_rpn", {"DATASETS.TEST": ("nowhere",)}, "no dataset 'nowhere'"),
        (
            "ga_fast_rcnn",
            {"DATASETS.PROPOSAL_FILES_TRAIN": ("{proposals}",), "DATASETS.PROPOSAL_FILES_TEST": ("absent.npz",)},
            "absent.npz: no such",
        ),
    ],
)
def test_what_is_tested_on_is_looked_at_before_training(engine, name, more, message, shapes, tmp_path):
    from ga_scope.data import load_coco_json, save_proposals
    from ga_scope.train import main

    records, _ = load_coco_json(shapes / "annotations" / "instances_train.json", shapes / "train")
    proposals = {r["image_id"]: ([[1.0, 2, 60, 70]], [0.5]) for r in records}
    save_proposals(tmp_path / "train.npz", proposals)
    more = {k: tuple(v.format(proposals=tmp_path / "train.npz") for v in values) for k, values in more.items()}
    with pytest.raises(SystemExit, match=message):
        main(["--config-file", config(name), "--engine", engine, *overrides(shapes, tmp_path / "out", **more)])
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.parametrize("name", ["ga_faster_rcnn_R_18_FPN", "faster_rcnn_R_18_FPN", "scopenet_R_18_FPN"])
def test_checkpoints_cross(name, shapes, tmp_path):
    """Trained in one engine, evaluated in the other: the same metrics."""
    from ga_scope.train import main

    def run(engine, output, *flags, **more):
        config = str(CONFIGS / "shapes" / f"{name}.yaml")
        results = main(["--config-file", config, "--engine", engine, *flags, *overrides(shapes, output, **more)])
        return next(iter(results.values()))

    for trains, tests in (("torchvision", "detectron2"), ("detectron2", "torchvision")):
        run(trains, tmp_path / trains)
        # Images are scaled up, so that boxes must be scaled back; barely trained, no location is sure of itself.
        more = {"MODEL.WEIGHTS": str(tmp_path / trains / "model_final.pth")}
        more |= {"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.001}
        more |= {"INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 160, "MODEL.SCOPENET.SCORE_THRESH_TEST": 0.0}
        there, here = (run(engine, tmp_path / "evaluation", "--eval-only", **more) for engine in (trains, tests))
        assert there.get("AR@1000", 1) > 0
        assert set(there) == set(here)
        for key in {"AR@100", "AR@1000", "AP", "anchors_per_image"} & set(here):
            assert there[key] == pytest.approx(here[key], abs=1e-3), key
