"""Checkpoints: what is in them, what they mean, whose files are read, what does not fit."""

import errno
import json
import logging
import re

import pytest
import torch
import torchvision

from ga_scope import Detector
from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.engines.weights import read_checkpoint
from ga_scope.errors import CheckpointError

from .conftest import ENGINES, SHAPES, config, entries, overrides, random_weights, randomise, run

CPU = ["MODEL.DEVICE", "cpu"]
CLASSES = ["rectangle", "ellipse", "triangle", "star", "letter"]


def options(name, *more):
    files = []
    if "fast_rcnn" in name or "finetune" in name:
        for split in ("TRAIN", "TEST"):
            files += [f"DATASETS.PROPOSAL_FILES_{split}", "('p.npz',)"]
    return [*CPU, *files, *more]


def checkpointer(name, engine="torchvision", *more, folder="", **parts):
    """Of a model with fresh weights; and its tensors by name."""
    engine = get_engine(engine)
    cfg = engine.setup(config(name), options(name, *more))
    model = engine.build(cfg)
    return Checkpointer(cfg, model, engine.named_state, folder, CLASSES, **parts), engine.named_state(model)


def assert_loaded(state, saved):
    assert len(saved) > 50
    for key, value in saved.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip(name, tmp_path):
    """Every parameter and statistic under a name of its own, into either engine; the file is there as a whole."""
    first, state = checkpointer(name, folder=tmp_path)
    assert len(state) == len(first.model.state_dict())
    randomise(first.model)
    path = first.save("model", iteration=7)
    content = torch.load(path, weights_only=True)
    assert content["iteration"] == 7 and content["ga_scope"]["classes"] == CLASSES
    assert content["ga_scope"]["config"]["MODEL.META_ARCHITECTURE"] == first.cfg.MODEL.META_ARCHITECTURE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    assert first.last() == path
    saved = {k: v.detach().clone() for k, v in state.items() if "num_batches" not in k}
    assert set(content["model"]) == set(saved)
    second, fresh = checkpointer(name)
    assert not torch.equal(fresh["backbone.bottom_up.stem.conv1.weight"], saved["backbone.bottom_up.stem.conv1.weight"])
    assert second.load(path)["iteration"] == 7
    assert_loaded(fresh, saved)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", SHAPES)
def test_into_the_other_engine(name, tmp_path):
    first, state = checkpointer(name, folder=tmp_path)
    path = first.save("model")
    second, fresh = checkpointer(name, "detectron2", folder=tmp_path)
    second.load(path)
    assert_loaded(fresh, {k: v for k, v in state.items() if "num_batches" not in k})
    back = second.save("back")
    assert set(torch.load(back, weights_only=True)["model"]) == set(torch.load(path, weights_only=True)["model"])
    checkpointer(name)[0].load(back)


# ---- A6: what weights mean ---------------------------------------------------------------------------

MEANINGS = [
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.SHAPE_STD", 1.0),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.SIGMA", 8.0),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.CELL_OFFSET", 0.0),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.CONV", True),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.SHAPE.PREDICT_CENTER", True),
    ("ga_rpn", "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS", "features"),
    ("ga_rpn", "MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)),
    ("ga_rpn", "MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"]),
    ("ga_rpn", "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]),
    ("ga_rpn", "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
    ("ga_rpn", "INPUT.FORMAT", "RGB"),
    ("ga_rpn", "MODEL.RESNETS.STRIDE_IN_1X1", True),
    ("rpn", "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
    ("rpn", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0, 2.0, 3.0]]),
    ("faster_rcnn", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)),
    ("faster_rcnn", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"]),
    ("scopenet", "MODEL.SCOPENET.BINS.SIZE", 1.25),
    ("scopenet", "MODEL.SCOPENET.BINS.UNCERTAINTY", False),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name, key, value", MEANINGS)
def test_weights_under_another_meaning_are_an_error(name, key, value, engine, tmp_path):
    """In evaluation; most of these change no tensor's shape, and all of them every result."""
    path = checkpointer(name, engine, folder=tmp_path)[0].save("model")
    text = value if isinstance(value, str) else repr(value)
    other, _ = checkpointer(name, engine, key, text)
    with pytest.raises(CheckpointError, match=rf"model.pth: was trained with {key} .*, not ") as error:
        other.load(path)
    assert "\n" not in str(error.value)
    checkpointer(name, engine)[0].load(path)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("ga_rpn", "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD", "0.3"),
        ("ga_rpn", "MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST", "100"),
        ("ga_rpn", "MODEL.RPN.NMS_THRESH", "0.5"),
        ("faster_rcnn", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"),
        ("scopenet", "MODEL.SCOPENET.RESCORE", "none"),
        ("scopenet", "TEST.DETECTIONS_PER_IMAGE", "10"),
        ("scopenet", "INPUT.MIN_SIZE_TEST", "400"),
    ],
)
def test_what_is_of_the_inference_may_differ(name, key, value, tmp_path):
    path = checkpointer(name, folder=tmp_path)[0].save("model")
    checkpointer(name, "torchvision", key, value)[0].load(path)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_the_model_does_not_have_are_an_error(engine, tmp_path):
    """CONV True evaluated with CONV False gave other numbers and no message; here of a file that says nothing of it."""
    saved, state = checkpointer("ga_rpn", engine, "MODEL.GUIDED_ANCHORING.CONV", "True")
    torch.save({"model": {k: v.detach() for k, v in state.items()}}, tmp_path / "conv.pth")
    without, _ = checkpointer("ga_rpn", engine)
    with pytest.raises(CheckpointError, match=r"conv.pth: does not fit the model: .*rpn.head.conv.weight: not in the"):
        without.load(tmp_path / "conv.pth")
    torch.save({"model": {k: v for k, v in state.items() if ".conv." not in k}}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"none.pth: does not fit the model: .*rpn.head.conv.weight: missing"):
        saved.load(tmp_path / "none.pth")


@pytest.mark.parametrize("engine", ENGINES)
def test_as_weights_to_start_from_they_are_used_as_far_as_they_fit(engine, tmp_path, caplog):
    """A warning names what starts fresh; another meaning is what fine-tuning may want."""
    first, state = checkpointer("ga_rpn", engine, "MODEL.GUIDED_ANCHORING.CONV", "True", folder=tmp_path)
    path = first.save("model")
    other, fresh = checkpointer("ga_rpn", engine, "MODEL.GUIDED_ANCHORING.SHAPE_STD", "1.0")
    with caplog.at_level(logging.INFO):
        other.load(path, strict=False)
    assert "model.pth: the model has no use for proposal_generator.rpn.head.conv" in caplog.text
    assert_loaded(fresh, {k: v for k, v in state.items() if k in fresh and "num_batches" not in k})
    caplog.clear()
    path = checkpointer("ga_rpn", engine, folder=tmp_path)[0].save("plain")
    wide, fresh = checkpointer("ga_rpn", engine, "MODEL.GUIDED_ANCHORING.CONV", "True")
    with caplog.at_level(logging.WARNING):
        wide.load(path, strict=False)
    (line,) = caplog.messages
    assert re.search(r"plain.pth: these start fresh: .*rpn.head.conv.weight; .*rpn.head.conv.bias$", line), line


def test_a_network_beside_the_model_may_be_left_out(tmp_path):
    """RESCORE distribution's reads the bins and nothing else: a score without it is of the same weights."""
    with_quality = "MODEL.SCOPENET.RESCORE", "distribution"
    path = checkpointer("scopenet", "torchvision", *with_quality, folder=tmp_path)[0].save("quality")
    checkpointer("scopenet")[0].load(path)
    path = checkpointer("scopenet", folder=tmp_path)[0].save("mean")
    with pytest.raises(CheckpointError, match="mean.pth: does not fit the model: detector.quality.* missing"):
        checkpointer("scopenet", "torchvision", *with_quality)[0].load(path)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_and_resuming_look_at_the_meaning(engine, shapes, tmp_path):
    """As commands: exit, one line. Training from the same weights goes."""
    opts = overrides(shapes, tmp_path, **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    run("ga_rpn", engine, opts)
    weights, changed = tmp_path / "model_final.pth", ["MODEL.GUIDED_ANCHORING.SHAPE_STD", "1.0"]
    message = r"model_final.pth: was trained with MODEL.GUIDED_ANCHORING.SHAPE_STD 0.14, not 1.0"
    with pytest.raises(SystemExit, match=f"^CheckpointError: .*{message}$"):
        opened = [*overrides(shapes, tmp_path / "e"), "MODEL.WEIGHTS", str(weights), *changed]
        run("ga_rpn", engine, opened, "--eval-only")
    with pytest.raises(SystemExit, match=f"^CheckpointError: .*{message}$"):
        run("ga_rpn", engine, [*opts, "SOLVER.MAX_ITER", "2", *changed], "--resume")
    more = overrides(shapes, tmp_path / "new", **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    run("ga_rpn", engine, [*more, "MODEL.WEIGHTS", str(weights), *changed])
    content = torch.load(tmp_path / "new" / "model_final.pth", weights_only=False)
    assert content["ga_scope"]["config"][changed[0]] == 1.0


# ---- case_12: files of other makes -------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_plain_state_dicts(engine, wrapped, tmp_path):
    """torch.save(model.state_dict()): of this project's model, bare or below a key."""
    _, state = checkpointer("ga_rpn")
    state = {k: v.detach() for k, v in state.items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "plain.pth")
    other, fresh = checkpointer("ga_rpn", engine)
    content = other.load(tmp_path / "plain.pth")
    assert content.get("epoch") == (3 if wrapped else None)
    assert_loaded(fresh, {k: v for k, v in state.items() if "num_batches" not in k})


IMAGENET = {
    "resnet18": ["MODEL.RESNETS.DEPTH", "18"],
    "resnet34": ["MODEL.RESNETS.DEPTH", "34"],
    "resnet50": ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", IMAGENET)
def test_torchvisions_imagenet_files(engine, network, tmp_path):
    """Read by the names that torchvision gives them, they make the features that torchvision's network makes."""
    theirs = getattr(torchvision.models, network)()
    for name, value in sorted(theirs.state_dict().items()):  # statistics, too
        if "running_mean" in name:
            value.normal_(std=0.1)
        elif "running_var" in name:
            value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / f"{network}.pth")
    ours, _ = checkpointer("rpn", engine, *IMAGENET[network])
    ours.load(tmp_path / f"{network}.pth", strict=False)
    x, theirs = torch.randn(1, 3, 64, 96, dtype=torch.float64), theirs.double().eval()
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = {}
        for i in range(1, 5):
            y = expected[f"res{i + 1}"] = getattr(theirs, f"layer{i}")(y)
        backbone = ours.model.double().eval().backbone
        found = backbone(x) if engine == "torchvision" else backbone.bottom_up(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_from_torchvisions_imagenet_file(engine, shapes, tmp_path):
    """One command; what is not of the backbone starts fresh."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18-f37072fd.pth")
    more = {"MODEL.WEIGHTS": str(tmp_path / "resnet18-f37072fd.pth"), "SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()}
    run("ga_rpn", engine, overrides(shapes, tmp_path / "out", **more))
    with pytest.raises(
        SystemExit, match=r"resnet18-f37072fd.pth: does not fit the model: .*fpn_lateral2.weight: missing"
    ):
        opts = overrides(shapes, tmp_path / "eval", **{"MODEL.WEIGHTS": more["MODEL.WEIGHTS"]})
        run("ga_rpn", engine, opts, "--eval-only")


# ---- files that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "expected the parameters of a model by their names, got an empty dict"),
        ({"model": {}}, "expected the parameters of a model by their names, got an empty dict"),
        ({"weight": 3}, "expected the parameters of a model by their names, got a dict with weight: int"),
        ({"model": {"a": torch.zeros(1), "b": "text"}}, "got a dict with b: str"),
        ({"model": [torch.zeros(1)]}, "expected the parameters of a model by their names, got list"),
        ([torch.zeros(1)], "expected the parameters of a model by their names, got list"),
        (torch.zeros(3), "expected the parameters of a model by their names, got Tensor"),
        (5, "expected the parameters of a model by their names, got int"),
        (torch.nn.Linear(2, 2), "it holds more than tensors, which is not loaded for safety .*Linear"),
        ({"model": {"weight": torch.zeros(3)}}, "no parameter fits the model, for example "),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_contents_that_are_no_weights_are_named(content, message, strict, tmp_path):
    torch.save(content, tmp_path / "bad.pth")
    if "no parameter" in message and strict:
        message = "does not fit the model: .*missing"
    with pytest.raises(CheckpointError, match=f"bad.pth: .*{message}") as error:
        checkpointer("rpn")[0].load(tmp_path / "bad.pth", strict)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_that_are_no_checkpoints_are_named(suffix, tmp_path):
    whole = checkpointer("rpn", folder=tmp_path)[0].save("whole").read_bytes()
    path = tmp_path / f"bad.{suffix}"
    for content in (b"", b"garbage", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"bad.{suffix}: not a checkpoint that can be read") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
    for missing in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(CheckpointError, match=f"{missing}: no such checkpoint"):
            read_checkpoint(missing)


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_that_do_not_fit(engine, shapes, tmp_path, caplog):
    """Of five classes for seven: an error, or, to start from, a warning of what is fresh."""
    weights = random_weights("ga_faster_rcnn", overrides(shapes, tmp_path), tmp_path)[-1]
    state = torch.load(weights, weights_only=True)["model"]
    torch.save({"model": state}, tmp_path / "five.pth")
    seven, fresh = checkpointer("ga_faster_rcnn", engine, "MODEL.ROI_HEADS.NUM_CLASSES", "7")
    shape = r"cls_score.weight: \(6, 256\) in the file, \(8, 256\) in the model"
    with pytest.raises(CheckpointError, match=f"five.pth: does not fit the model: .*{shape}.*, and 1 more"):
        seven.load(tmp_path / "five.pth")
    before = fresh["roi_heads.box_predictor.cls_score.weight"].clone()
    with caplog.at_level(logging.WARNING):
        seven.load(tmp_path / "five.pth", strict=False)
    assert re.search(f"five.pth: these start fresh: .*{shape}", caplog.text)
    assert torch.equal(fresh["roi_heads.box_predictor.cls_score.weight"], before)
    assert_loaded(fresh, {k: v for k, v in state.items() if "box_predictor" not in k})


def test_resuming_needs_more_than_weights(tmp_path):
    """A file of weights alone; and one whose run has other parts."""
    first, _ = checkpointer("rpn", folder=tmp_path)
    path = first.save("model", iteration=3)
    with pytest.raises(
        CheckpointError, match=r"model.pth: expected optimizer to resume from, got none: .* starts anew"
    ):
        optimizer = torch.optim.SGD(first.model.parameters(), 0.1)
        checkpointer("rpn", folder=tmp_path, optimizer=optimizer)[0].resume(path)
    optimizer = torch.optim.SGD(first.model.parameters(), 0.1, momentum=0.5)
    path = checkpointer("rpn", folder=tmp_path, optimizer=optimizer)[0].save("whole", iteration=4)
    again, _ = checkpointer("rpn", folder=tmp_path, optimizer=torch.optim.SGD(first.model.parameters(), 0.1))
    assert again.resume(path)["iteration"] == 4
    assert again.parts["optimizer"].param_groups[0]["momentum"] == 0.5


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    """The checkpoint before it stays, and stays the newest."""
    saver, _ = checkpointer("rpn", folder=tmp_path)
    saver.save("first")
    before = (tmp_path / "first.pth").read_bytes()

    def fails(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    for name in ("first", "second"):
        with pytest.raises(CheckpointError, match=f"{name}.pth: cannot be written: No space left on device"):
            saver.save(name)
    assert (tmp_path / "first.pth").read_bytes() == before and saver.last() == tmp_path / "first.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.pth", "last_checkpoint"]


# ---- A4: classes travel ------------------------------------------------------------------------------


def renumbered(shapes, folder, order, numbers=None):
    """The validation images registered with classes of another order, or of the same and other numbers."""
    content = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    ids = sorted(names)
    new = dict(zip((ids[i] for i in order), numbers or ids))
    content["categories"] = [{"id": number, "name": names[old]} for old, number in new.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]
    (folder / "other.json").write_text(json.dumps(content))
    return [f"other_{folder.name}", str(folder / "other.json"), str(shapes / "val")]


@pytest.mark.parametrize("engine", ENGINES)
def test_other_numbers_of_the_same_classes_change_nothing(engine, shapes, tmp_path):
    """By number alone, AP was 0.857 and 0.0 of the same pictures."""
    more = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    opts = overrides(shapes, tmp_path / "a", **more)
    weights = random_weights("faster_rcnn", opts, tmp_path, classes=CLASSES)[-1]
    (plain,) = run("faster_rcnn", engine, [*opts, "MODEL.WEIGHTS", weights], "--eval-only").values()
    entry = renumbered(shapes, tmp_path, range(5), (7, 11, 300, 301, 999))
    more |= {"DATASETS.REGISTER": [entry], "DATASETS.TRAIN": (), "DATASETS.TEST": (entry[0],)}
    opts = overrides(shapes, tmp_path / "b", **more)
    (same,) = run("faster_rcnn", engine, [*opts, "MODEL.WEIGHTS", weights], "--eval-only").values()
    assert same == pytest.approx(plain, nan_ok=True) and len([key for key in same if key.startswith("AP-")]) == 5
    found = json.loads((tmp_path / "b" / "coco_instances_results.json").read_text())
    assert {item["category_id"] for item in found} <= {7, 11, 300, 301, 999} and found


@pytest.mark.parametrize("engine", ENGINES)
def test_another_order_of_the_classes_is_an_error(engine, shapes, tmp_path):
    """In evaluation, as a test set of a training, as a second training set: before any of it begins."""
    weights = random_weights("scopenet", overrides(shapes, tmp_path), tmp_path, classes=CLASSES)[-1]
    entry = renumbered(shapes, tmp_path, (1, 0, 2, 3, 4))
    name, both = entry[0], {"DATASETS.REGISTER": [*entries(shapes), entry]}
    opts = overrides(shapes, tmp_path / "eval", **both, **{"DATASETS.TEST": (name,), "MODEL.WEIGHTS": weights})
    expected = r"random.pth: was trained on the classes rectangle, ellipse, .*; other_.* has ellipse, rectangle, "
    with pytest.raises(SystemExit, match=f"^CheckpointError: .*{expected}"):
        run("scopenet", engine, opts, "--eval-only")
    for more in ({"DATASETS.TEST": (name,)}, {"DATASETS.TRAIN": (entries(shapes)[0][0], name)}):
        with pytest.raises(SystemExit, match=r"^DatasetError: .*other.json: classes: .* in another order\)$"):
            run("scopenet", engine, overrides(shapes, tmp_path / "train", **both, **more))
        assert not list((tmp_path / "train").glob("*.pth"))


@pytest.mark.parametrize("engine", ENGINES)
def test_proposals_have_no_classes(engine, shapes, tmp_path):
    """An RPN is trained and tested on datasets of any."""
    entry = renumbered(shapes, tmp_path, (1, 0, 2, 3, 4))
    more = {"DATASETS.REGISTER": [*entries(shapes), entry], "DATASETS.TEST": (entry[0],), "SOLVER.MAX_ITER": 1}
    (metrics,) = run("rpn", engine, overrides(shapes, tmp_path / "out", **more)).values()
    assert "AR@100" in metrics
    content = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)
    assert content["ga_scope"]["classes"] is None
    assert Detector(config("rpn"), tmp_path / "out" / "model_final.pth", CPU, engine).classes == ()
