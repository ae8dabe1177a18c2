"""Fast R-CNN on proposals from files, and fine-tuning: both engines, from the dump to the metrics."""

import pickle

import numpy as np
import pytest
import torch

from ga_scope import Detector
from ga_scope.data import load_dataset, load_proposals, with_proposals
from ga_scope.engines import base, get_engine
from ga_scope.errors import DatasetError

from .conftest import (
    CONFIGS,
    ENGINES,
    assert_trained,
    config,
    main,
    overrides,
    random_weights,
    run,
    setup,
    short_training,
    tool,
)

NOTHING = 1e-300  # a learning rate that is none in float32


@pytest.fixture(scope="module")
def dumped(shapes, random_rpn, tmp_path_factory):
    """Files of the built-in engine's proposals of both splits."""
    folder = tmp_path_factory.mktemp("dump")
    for split in ("train", "val"):
        arguments = ["--config-file", config("ga_rpn"), "--engine", "torchvision", "--limit", "50"]
        dataset = ["--dataset", f"{split}_{shapes.parent.name}", "--output", str(folder / f"{split}.npz")]
        tool("dump_proposals").main([*arguments, *dataset, *random_rpn])
    return folder


def dump(engine, shapes, opts, path, *flags):
    """tools/dump_proposals.py on the validation images."""
    arguments = ["--config-file", config("ga_rpn"), "--engine", engine, "--dataset", f"val_{shapes.parent.name}"]
    tool("dump_proposals").main([*arguments, "--output", str(path), *flags, *opts])


def files(folder, suffix="npz"):
    names = (("TRAIN", "train"), ("TEST", "val"))
    return {f"DATASETS.PROPOSAL_FILES_{split}": (str(folder / f"{name}.{suffix}"),) for split, name in names}


@pytest.mark.parametrize("engine", ENGINES)
def test_dump_is_what_the_model_gives(engine, shapes, random_rpn, tmp_path):
    """Reloaded, the proposals are bit for bit those of the model; in both formats, all or the best of them."""
    detector = Detector(config("ga_rpn"), overrides=random_rpn, engine=engine)
    for suffix, limit in (("npz", None), ("pkl", None), ("npz", 7)):
        path = tmp_path / f"p{limit}.{suffix}"
        dump(engine, shapes, random_rpn, path, *([] if limit is None else ["--limit", str(limit)]))
        read = load_proposals(path)
        dataset = load_dataset(f"val_{shapes.parent.name}")
        assert len(read) == len(dataset) == 10
        total = 0
        for expected in detector.stream(dataset.first(3)):
            boxes, logits = read.of(expected.record["image_id"])
            assert expected.proposals[:limit].numpy().tobytes() == boxes.tobytes()
            assert expected.proposal_logits[:limit].numpy().tobytes() == logits.tobytes()
            total += len(boxes)
        assert total > 50 if limit is None else total == 3 * limit


@pytest.mark.detectron2
def test_detectron2s_own_loader_reads_the_pickle(shapes, random_rpn, tmp_path):
    from detectron2.data.build import load_proposals_into_dataset

    path = tmp_path / "p.pkl"
    dump("torchvision", shapes, random_rpn, path)
    ours = load_proposals(path)
    records = load_proposals_into_dataset(list(load_dataset(f"val_{shapes.parent.name}")), str(path))
    assert len(records) == 10
    for record in records:
        boxes, logits = ours.of(record["image_id"])
        assert len(boxes) > 5 and np.array_equal(record["proposal_objectness_logits"], logits)
        # It orders equal logits as it likes.
        assert set(map(tuple, record["proposal_boxes"].tolist())) == set(map(tuple, boxes.tolist()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["fast_rcnn", "ga_fast_rcnn", "ga_finetune"])
def test_train_and_evaluate(name, engine, shapes, dumped, tmp_path, losses):
    """From the files to metrics; the model has no RPN."""
    (metrics,) = run(name, engine, short_training(name, shapes, tmp_path, **files(dumped))).values()
    assert_trained(losses)
    assert "AP50" in metrics and "AR@100" not in metrics
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    assert not any("proposal_generator" in key for key in saved) and any("roi_heads" in key for key in saved)


@pytest.mark.parametrize("engine", ENGINES)
def test_fine_tuning_starts_from_a_detector_without_its_rpn(engine, shapes, dumped, tmp_path):
    """A Faster R-CNN's weights are all taken but the RPN's; trained with NOTHING they stay as they are."""
    faster = overrides(shapes, tmp_path / "faster", **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    run("faster_rcnn", engine, faster)
    weights = tmp_path / "faster" / "model_final.pth"
    more = files(dumped) | {"MODEL.WEIGHTS": str(weights), "SOLVER.BASE_LR": NOTHING, "SOLVER.MAX_ITER": 1}
    run("ga_finetune", engine, overrides(shapes, tmp_path / "tuned", **more))
    before = torch.load(weights, weights_only=False)["model"]
    after = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=False)["model"]
    assert {k for k in before if "anchor_generator" not in k} - set(after) == {
        k for k in before if k.startswith("proposal_generator.") and "anchor_generator" not in k
    }
    for key, value in after.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key])), key


@pytest.mark.detectron2
def test_same_weights_same_detections(shapes, dumped, random_rpn, tmp_path):
    """Precomputed proposals, one image at a time, in both engines; and made on the fly by another model."""
    sizes = {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1}
    opts = overrides(shapes, tmp_path, **files(dumped), **sizes)
    opts = random_weights("ga_fast_rcnn", opts, tmp_path)
    ours, theirs = (Detector(config("ga_fast_rcnn"), overrides=opts, engine=e) for e in ("torchvision", "detectron2"))
    on_the_fly = Detector(config("ga_rpn"), overrides=random_rpn, engine="torchvision")
    proposals, seen = load_proposals(dumped / "val.npz"), 0
    for record in load_dataset(f"val_{shapes.parent.name}"):
        ((a,), (b,)) = (d.stream([with_proposals(record, *proposals.of(record["image_id"]))]) for d in (ours, theirs))
        assert len(a.boxes) == len(b.boxes) and a.proposals is None and b.proposals is None
        seen += len(a.boxes)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        assert torch.equal(a.classes, b.classes)
        (rpn,) = on_the_fly.stream([record])
        (c,) = ours.stream([with_proposals(record, rpn.proposals[:50], rpn.proposal_logits[:50])])
        torch.testing.assert_close(a.boxes, c.boxes)
    assert seen > 20


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"DATASETS.PROPOSAL_FILES_TRAIN": ()},
            "PROPOSAL_FILES_TRAIN: expected 1 files, one for each of DATASETS.TRAIN, got 0",
        ),
        ({"DATASETS.PROPOSAL_FILES_TRAIN": ("/nowhere/p.npz",)}, "/nowhere/p.npz: no such proposal file"),
        ({"DATASETS.PROPOSAL_FILES_TRAIN": ("PKL",)}, "p.pkl: not a proposal file: "),
    ],
)
def test_bad_files_are_named(more, message, engine, shapes, dumped, tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04.")
    more = {k: tuple(str(tmp_path / "p.pkl") if f == "PKL" else f for f in v) for k, v in more.items()}
    with pytest.raises(SystemExit, match=message):
        run("fast_rcnn", engine, overrides(shapes, tmp_path, **(files(dumped) | more)))


@pytest.mark.parametrize("engine", ENGINES)
def test_generator_and_loading_must_agree(engine, shapes, dumped, tmp_path):
    opts = overrides(shapes, tmp_path, **{"MODEL.LOAD_PROPOSALS": False})
    with pytest.raises(SystemExit, match="MODEL.LOAD_PROPOSALS: expected True with .*PrecomputedProposals"):
        run("fast_rcnn", engine, opts)
    mapper = base.TestMapper(setup("fast_rcnn", overrides(shapes, tmp_path, **files(dumped)), engine))
    with pytest.raises(DatasetError, match="expected proposals with the image"):
        mapper(load_dataset(f"val_{shapes.parent.name}")[0])


MASKS = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "4"]
ZOO = {"COCO-Detection/faster_rcnn_R_50_FPN_1x": [], "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": MASKS}
FINETUNE = str(CONFIGS / "COCO-Detection" / "ga_finetune_R_50_FPN_3_epochs.yaml")


def zoo_model(name, classes=80):
    """A detector of detectron2's model zoo with random weights."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model as build_detectron2

    cfg = model_zoo.get_config(f"{name}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", classes
    return build_detectron2(cfg)


def without_rpn(state):
    return {k: v for k, v in state.items() if not k.startswith("proposal_generator")}


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ZOO)
def test_detectors_of_detectron2s_zoo_can_be_fine_tuned(name):
    """All that they have besides their RPN fits the model of the configuration, and that has nothing more."""
    engine, files = get_engine("detectron2"), []
    for split in ("TRAIN", "TEST"):
        files += [f"DATASETS.PROPOSAL_FILES_{split}", "('p.npz',)"]
    cfg = engine.setup(FINETUNE, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *files, *ZOO[name]])
    theirs, ours = (without_rpn(model.state_dict()) for model in (zoo_model(name), engine.build(cfg)))
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.detectron2
@pytest.mark.parametrize("name, engine", [*((name, "detectron2") for name in ZOO), (next(iter(ZOO)), "torchvision")])
def test_fine_tuning_of_a_zoo_file(name, engine, shapes, dumped, tmp_path):
    """From the zoo's pickle to metrics in one command; trained with NOTHING the detector stays as the file has it."""
    state = zoo_model(name, classes=5).state_dict()
    weights = tmp_path / "model_final.pkl"
    contents = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    weights.write_bytes(pickle.dumps(contents))
    more = files(dumped) | {"MODEL.WEIGHTS": str(weights), "SOLVER.BASE_LR": NOTHING, "SOLVER.MAX_ITER": 1}
    opts = overrides(shapes, tmp_path / "tuned", **more, **{"MODEL.ROI_HEADS.NUM_CLASSES": 5})
    arguments = ["--config-file", FINETUNE, "--engine", engine, *opts, *ZOO[name]]
    (metrics,) = main(arguments).values()
    assert "AP50" in metrics and ("segm/AP" in metrics) == (ZOO[name] == MASKS)
    tuned = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=False)["model"]
    expected = without_rpn(state)
    assert set(tuned) == set(expected)
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(tuned[key]), value), key
