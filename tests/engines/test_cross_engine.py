"""detectron2 and the built-in engine: same configuration, same weights, same losses, gradients and results."""

import json
import re

import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from ga_scope import Detector
from ga_scope.config import SCHEMA, add_ga_scope_config, flat
from ga_scope.data import ProposalWriter, load_coco_json
from ga_scope.engines import get_engine

from .conftest import CONFIGS, SHAPES, TRAINABLE, config, overrides, photos, random_weights, randomise, run

pytestmark = pytest.mark.detectron2

BOTH = ("torchvision", "detectron2")


def test_defaults_are_detectron2s():
    """A key that a yaml leaves out means the same to both engines."""
    from detectron2.config import get_cfg

    theirs, ours = flat(add_ga_scope_config(get_cfg())), flat(SCHEMA.add_defaults(CfgNode(), builtin=True))
    assert len(ours) > 150
    for key, value in ours.items():
        assert key in theirs, key
        assert value == theirs[key] and type(value) is type(theirs[key]), key


def all_configs():
    return [p for p in sorted(CONFIGS.glob("*/*.yaml")) if "Base" not in p.name]


def options(path):
    """A model of this configuration without data and weights."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    if "fast_rcnn" in path or "finetune" in path:
        for split in ("TRAIN", "TEST"):
            opts += [f"DATASETS.PROPOSAL_FILES_{split}", "('p.npz',)"]
    return opts


@pytest.mark.parametrize("path", all_configs(), ids=lambda p: p.stem)
def test_models_have_the_same_parameters(path):
    """Names and shapes of every parameter and buffer, as checkpoints have them."""
    found = []
    for name in BOTH:
        engine = get_engine(name)
        state = engine.named_state(engine.build(engine.setup(str(path), options(path.name))))
        found.append({k: v.shape for k, v in state.items() if "anchor_generator" not in k})
    assert found[0] == found[1]


# ---- losses and gradients --------------------------------------------------------------------------

SIZES = ((160, 192), (128, 176))
BOXES = {
    # Close to an anchor of every configuration: positive by their IoU, whatever the rule for low quality says.
    "apart": [(16, 24, 16), (96, 96, 64), (32, 64, 32), (104, 56, 16), (64, 64, 128)],
    # Within or around several anchors each, which so have one IoU: all of them are positive.
    "tied": [(21, 33, 6), (80, 84, 90), (50, 130, 11), (130, 40, 7), (61, 70, 44)],
}


def scene(kind):
    """Two images: pixels, boxes, classes, and for Fast R-CNN proposals."""
    images = []
    for i, (height, width) in enumerate(SIZES):
        coarse = torch.rand(1, 3, height // 16, width // 16)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        pixels = (200 * smooth + 55 * torch.rand(3, height, width)).to(torch.uint8)
        x, y, side = torch.tensor(BOXES[kind], dtype=torch.float32).T
        half = side / 2 * (1 + 0.04 * torch.rand(2, len(side)))
        boxes = torch.stack([x - half[0], y - half[1], x + half[0], y + half[1]], 1)[i:]
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=torch.float32))
        near = (boxes.repeat(8, 1) + 4 * torch.randn(8 * len(boxes), 4)).clamp(min=0)
        near = near.minimum(torch.tensor([width, height] * 2, dtype=torch.float32))
        near = near[(near[:, 2:] > near[:, :2] + 2).all(1)]
        images.append(
            {
                "file_name": str(i),
                "image_id": i,
                "height": height,
                "width": width,
                "image": pixels,
                "boxes": boxes,
                "labels": torch.arange(len(boxes)) % 5,
                "proposals": (near, torch.randn(len(near)).sort(descending=True).values),
            }
        )
    return images


def everything_sampled(name):
    """Samples as large as all that there is: no luck is left in the losses."""
    rpn, ga = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000}, {"MODEL.GUIDED_ANCHORING.SHAPE.BATCH_SIZE_PER_IMAGE": 100000}
    roi = {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10000}
    read = {}
    if "rpn" in name or "faster" in name:
        read |= rpn
    if name in ("ga_rpn", "ga_faster_rcnn", "ga_retinanet"):
        read |= ga
    if "rcnn" in name or "finetune" in name:
        read |= roi
    return [part for key, value in read.items() for part in (key, str(value))]


def losses_and_gradients(engine, model, inputs):
    """Of a training step on inputs as the engine takes them, the gradients by detectron2's names of the parameters."""
    from detectron2.utils.events import EventStorage

    model.train()
    with EventStorage():
        losses = model(inputs).losses if engine.builtin else model(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in engine.named_state(model).items() if getattr(p, "grad", None) is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def as_detectron2_trains(inputs):
    from detectron2.structures import Boxes, Instances

    from ga_scope.engines.detectron2.engine import as_detectron2

    batch = []
    for x in inputs:
        target = Instances((x["height"], x["width"]), gt_boxes=Boxes(x["boxes"]), gt_classes=x["labels"])
        batch.append(as_detectron2(x) | {"instances": target})
    return batch


def models_of_same_weights(name, opts):
    """An (engine, model) of each engine, with the same random weights everywhere."""
    found = []
    torch.manual_seed(0)
    for engine in map(get_engine, BOTH):
        found.append((engine, engine.build(engine.setup(config(name), opts))))
    randomise(found[0][1])
    source, target = (engine.named_state(model) for engine, model in found)
    with torch.no_grad():
        for key, value in source.items():
            target[key].copy_(value)
    return found


def assert_same_training(found):
    """Losses to 1e-5 of each, gradients to 1e-4 of the largest of each parameter.

    A bias before a normalisation has no gradient but for rounding: that is compared with the largest of all.
    """
    (losses, gradients), (other_losses, other_gradients) = found
    assert set(losses) == set(other_losses) and len(losses) >= 2
    for key, value in losses.items():
        assert value == pytest.approx(other_losses[key], rel=1e-5), key
        assert value > 0, key
    assert set(gradients) == set(other_gradients)
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 0
    for key, value in gradients.items():
        limit = max(1e-4 * float(value.abs().max()), 1e-7 * largest)
        assert float((value - other_gradients[key]).abs().max()) <= limit, key


BASELINES = {
    "rpn": ("proposal_generator", "RPN"),
    "rpn_9_anchors": ("proposal_generator", "RPN"),
    "faster_rcnn": ("proposal_generator", "RPN"),
    "fast_rcnn": ("roi_heads", "StandardROIHeads"),
    "retinanet": ("", "RetinaNet"),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_detectron2s_own(name):
    """So that what is equal to them below is equal to detectron2's, and not to this project's under its names."""
    engine = get_engine("detectron2")
    model = engine.build(engine.setup(config(name), options(name)))
    part, kind = BASELINES[name]
    for owner in (model, model.get_submodule(part)):
        assert type(owner).__module__.startswith("detectron2."), type(owner)
    assert type(model.get_submodule(part)).__name__ == kind


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("name", SHAPES)
def test_same_weights_same_losses_and_gradients(name, kind):
    """One batch of two images of unequal size, in training: normalisation by the batch, every anchor sampled."""
    inputs = scene(kind)
    if "fast_rcnn" not in name and "finetune" not in name:
        inputs = [{k: v for k, v in x.items() if k != "proposals"} for x in inputs]
    (ours, our_model), (theirs, their_model) = models_of_same_weights(name, [*options(name), *everything_sampled(name)])
    found = losses_and_gradients(ours, our_model, inputs)
    assert_same_training([found, losses_and_gradients(theirs, their_model, as_detectron2_trains(inputs))])


@pytest.fixture
def crowded(tmp_path):
    """Overrides for two images, each with objects, a crowd region and an annotation with "ignore": 1."""
    images, annotations = [], []
    for i, x in enumerate(scene("apart")):
        array = x["image"].permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": x["height"], "width": x["width"]})
        for k, (x1, y1, x2, y2) in enumerate(x["boxes"].tolist()):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "image_id": i, "category_id": 1 + k % 5}
            annotations.append(box | ({"ignore": 1} if k == 1 else {}))
        annotations.append({"bbox": [0, 0, 70, 100], "image_id": i, "category_id": 2, "iscrowd": 1})
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 6)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "crowded.json").write_text(json.dumps(content))
    name = f"crowded_{tmp_path.name}"
    entry = [name, str(tmp_path / "crowded.json"), str(tmp_path)]
    data = {"DATASETS.REGISTER": [entry], "DATASETS.TRAIN": (name,), "DATASETS.TEST": (), "INPUT.RANDOM_FLIP": "none"}
    data |= {"INPUT.MIN_SIZE_TRAIN": (0,)}
    return [part for k, v in data.items() for part in (k, v if isinstance(v, str) else repr(v))]


def trained_on(name, opts):
    """Losses and gradients of each engine, of images that come the whole way from its dataset."""
    from ga_scope.engines.detectron2.data import TrainMapper as TheirMapper
    from ga_scope.engines.torchvision.data import TrainMapper as OurMapper

    found = []
    for engine, model in models_of_same_weights(name, opts):
        cfg = engine.setup(config(name), opts)
        mapper = (OurMapper if engine.builtin else TheirMapper)(cfg)
        records = engine.training_records(cfg)
        found.append(losses_and_gradients(engine, model, [mapper(records[i]) for i in range(len(records))]))
    return found


@pytest.mark.parametrize("name", ["ga_rpn", "ga_faster_rcnn", "ga_retinanet", "rpn_focal", "scopenet"])
def test_ignore_regions_reach_the_matching_of_both_engines(name, crowded):
    """Crowds and annotations with "ignore": no objects either way, and with the key no background."""
    opts = [*options(name), *everything_sampled(name), *crowded]
    with_key, without = (trained_on(name, [*opts, "DATASETS.IGNORE_REGIONS", str(on)]) for on in (True, False))
    assert_same_training(with_key)
    assert_same_training(without)
    # What has positives alone stays as it is, but for ROI heads' mean over their whole sample.
    same = {"loss_anchor_shape", "loss_rpn_loc", "loss_box", "loss_bin"}
    if "rcnn" not in name:
        same |= {"loss_box_reg"}
    for key, value in with_key[0][0].items():
        different = abs(value - without[0][0][key]) > 1e-6 * value
        assert different == (key not in same), (key, value, without[0][0][key])


# ---- results ---------------------------------------------------------------------------------------


def assert_same(boxes, scores, other_boxes, other_scores):
    """Boxes to 1e-3 px and scores to 1e-5, in order but for boxes whose scores are that close."""
    assert len(boxes) == len(other_boxes)
    torch.testing.assert_close(scores, other_scores, rtol=0, atol=1e-5)
    if len(boxes):
        apart = (boxes[:, None] - other_boxes).abs().amax(-1)
        same = (apart <= 1e-3) & ((scores[:, None] - other_scores).abs() <= 1e-5)
        assert same.any(0).all() and same.any(1).all()


def detectors(name, opts):
    return [Detector(config(name), overrides=opts, engine=engine) for engine in BOTH]


def varied(name, deep):
    """Settings under which the random weights of a model have much to say; ``deep``: an R-50 of detectron2's kind."""
    more = {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200}
    if name.startswith("ga"):
        more |= {"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.01, "MODEL.GUIDED_ANCHORING.SHAPE_STD": 0.14}
    if name in ("ga_rpn", "ga_faster_rcnn"):
        more |= {"MODEL.GUIDED_ANCHORING.CONV": deep}
    if "rcnn" in name:
        more |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1}
    if "retinanet" in name:
        more |= {"MODEL.RETINANET.PRIOR_PROB": 0.3, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.2}
        more |= {"MODEL.RETINANET.BBOX_REG_WEIGHTS": (20.0,) * 4}
    if deep:
        more |= {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": True, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}
        if "retinanet" in name:
            more |= {"MODEL.RETINANET.NUM_CONVS": 4, "MODEL.RETINANET.NORM": ""}
    return more


def quieted(model):
    """Without norms a RetinaNet's outputs grow until scores are all 1 and have no order."""
    for key, parameter in model.named_parameters():
        if re.search(r"(cls_score|bbox_pred|(classification|regression)\.predict)\.weight", key):
            parameter.data *= 1e-3


DEEP = ("rpn", "faster_rcnn", "rpn_9_anchors", "rpn_refine", "ga_rpn", "ga_faster_rcnn", "retinanet", "ga_retinanet")
WITHOUT_SCOPE = [name for name in TRAINABLE if "scopenet" not in name]


@pytest.mark.parametrize("name, deep", [*((n, False) for n in WITHOUT_SCOPE), *((n, True) for n in DEEP)])
def test_same_weights_same_results(name, deep, shapes, tmp_path):
    """Ten images: proposals and detections to 1e-3 px and 1e-5 in score; the same anchors, too."""
    opts = overrides(shapes, tmp_path, **varied(name, deep))
    opts = random_weights(name, opts, tmp_path, change=quieted if deep and "retinanet" in name else None)
    ours, theirs = detectors(name, opts)
    records, guided, seen = photos(shapes), name.startswith("ga"), 0
    assert len(records) == 10
    for a, b in zip(ours.stream(records, maps=guided), theirs.stream(records, maps=guided)):
        assert a.record == b.record
        if "retinanet" not in name:
            assert_same(a.proposals, a.proposal_logits.sigmoid(), b.proposals, b.proposal_logits.sigmoid())
            seen += len(a.proposals)
        if "rpn" in name:
            assert a.boxes is None and b.boxes is None
        else:
            seen += len(a.boxes)
            assert_same(a.boxes, a.scores, b.boxes, b.scores)
            assert torch.equal(a.classes.sort().values, b.classes.sort().values)
        # Those of the two RPNs that detectron2 does not have are counted there, too.
        assert (a.anchors, a.locations) == (b.anchors, b.locations) and a.anchors > 0
        if guided:
            assert len(a.guided.boxes) == len(b.guided.boxes) == a.anchors
            torch.testing.assert_close(a.guided.boxes, b.guided.boxes, rtol=1e-4, atol=1e-3)
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
    more = {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200, "MODEL.SCOPENET.PRIOR_PROB": 0.3}
    opts = random_weights("scopenet", overrides(shapes, tmp_path, **more, **SCOPENETS[variant]), tmp_path)
    ours, theirs = detectors("scopenet", opts)
    records, seen = photos(shapes), 0
    for a, b in zip(ours.stream(records), theirs.stream(records)):
        assert a.proposals is None and b.proposals is None
        assert torch.equal(a.classes, b.classes)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        seen += len(a.boxes)
    assert len(records) == 10 and seen > 100


# ---- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine, other", [BOTH, BOTH[::-1]])
def test_resuming_in_the_other_engine_is_an_error(engine, other, shapes, tmp_path):
    """The optimizer's state has another form; without it a schedule would begin anew, or go on with a jolt."""
    opts = overrides(shapes, tmp_path, **{"DATASETS.TEST": ()})
    run("ga_rpn", engine, opts)
    with pytest.raises(SystemExit, match=f"model_final.pth: is of the other engine: --engine {engine} resumes it"):
        run("ga_rpn", other, opts, "--resume")


@pytest.mark.parametrize("engine", BOTH)
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
    dataset = load_coco_json(shapes / "annotations" / "instances_train.json", shapes / "train")
    with ProposalWriter(tmp_path / "train.npz") as file:
        for image_id in dataset.image_ids:
            file.add(image_id, [[1.0, 2, 60, 70]], [0.5])
    more = {k: tuple(v.format(proposals=tmp_path / "train.npz") for v in values) for k, values in more.items()}
    with pytest.raises(SystemExit, match=message):
        run(name, engine, overrides(shapes, tmp_path / "out", **more))
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.parametrize("name", ["ga_faster_rcnn", "faster_rcnn", "scopenet"])
def test_checkpoints_cross(name, shapes, tmp_path):
    """Trained in one engine, evaluated in the other: the same metrics."""
    for trains, tests in (BOTH, BOTH[::-1]):
        run(name, trains, overrides(shapes, tmp_path / trains))
        # Images are scaled up, so that boxes must be scaled back; barely trained, no location is sure of itself.
        more = {"MODEL.WEIGHTS": str(tmp_path / trains / "model_final.pth")}
        more |= {"INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 160}
        if name == "ga_faster_rcnn":
            more |= {"MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD": 0.001}
        if name == "scopenet":
            more |= {"MODEL.SCOPENET.SCORE_THRESH_TEST": 0.0}
        opts = overrides(shapes, tmp_path / "evaluation", **more)
        ((there,), (here,)) = (run(name, engine, opts, "--eval-only").values() for engine in (trains, tests))
        assert there.get("AR@1000", 1) > 0
        assert set(there) == set(here)
        for key in {"AR@100", "AR@1000", "AP", "anchors_per_image"} & set(here):
            assert there[key] == pytest.approx(here[key], abs=1e-3), key
