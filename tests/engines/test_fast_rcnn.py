"""Fast R-CNN on proposals from files, and fine-tuning: both engines, from the dump to the metrics."""

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ga_scope.data import load_dataset, load_proposals, with_proposals
from ga_scope.data.coco import DatasetError
from ga_scope.integrations.torchvision import run as builtin
from ga_scope.integrations.torchvision.checkpoint import to_detectron2
from ga_scope.integrations.torchvision.data import Mapper
from ga_scope.integrations.torchvision.models import build_model
from ga_scope.integrations.torchvision.predictor import Predictor as BuiltinPredictor
from ga_scope.train import main

from .conftest import assert_trained, config, overrides, randomise, short_training, tool

ROOT = Path(__file__).parents[2]
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def train(name, engine, opts, *flags):
    return main(["--config-file", config(name), "--engine", engine, *flags, *opts])


@pytest.fixture(scope="module")
def dumped(shapes, random_rpn, tmp_path_factory):
    """Files of the built-in engine's proposals of both splits."""
    folder = tmp_path_factory.mktemp("dump")
    for split in ("train", "val"):
        arguments = ["--config-file", config("ga_rpn"), "--engine", "torchvision", "--limit", "50"]
        dataset = ["--dataset", f"{split}_{shapes.parent.name}", "--output", str(folder / f"{split}.npz")]
        tool("dump_proposals").main([*arguments, *dataset, *random_rpn])
    return folder


def files(folder, suffix="npz"):
    names = (("TRAIN", "train"), ("TEST", "val"))
    return {f"DATASETS.PROPOSAL_FILES_{split}": (str(folder / f"{name}.{suffix}"),) for split, name in names}


@pytest.mark.parametrize("engine", ENGINES)
def test_dump_is_what_the_model_gives(engine, shapes, random_rpn, tmp_path):
    """Reloaded, the proposals are bit for bit those of the predictor; in both formats."""
    predictor_module = importlib.import_module(f"ga_scope.integrations.{engine}.predictor")
    setup = importlib.import_module(f"ga_scope.integrations.{engine}.run").setup
    predictor = predictor_module.Predictor(setup(config("ga_rpn"), random_rpn))
    name = f"val_{shapes.parent.name}"
    for format, suffix in (("npz", "npz"), ("detectron2", "pkl")):
        path = tmp_path / f"p.{suffix}"
        arguments = ["--config-file", config("ga_rpn"), "--engine", engine, "--format", format]
        tool("dump_proposals").main([*arguments, "--dataset", name, "--output", str(path), *random_rpn])
        read = load_proposals(path, trust_pickle=True)
        records = load_dataset(name)[0]
        assert len(read) == len(records)
        total = 0
        for record in records[:3]:
            expected, (boxes, logits) = predictor(record), read[str(record["image_id"])]
            assert expected.proposals.numpy().tobytes() == boxes.tobytes()
            assert expected.proposal_logits.numpy().tobytes() == logits.tobytes()
            total += len(boxes)
        assert total > 50


@pytest.mark.detectron2
def test_detectron2s_own_loader_reads_the_pickle(shapes, random_rpn, tmp_path):
    from detectron2.data.build import load_proposals_into_dataset

    path, name = tmp_path / "p.pkl", f"val_{shapes.parent.name}"
    arguments = ["--config-file", config("ga_rpn"), "--engine", "torchvision", "--format", "detectron2"]
    tool("dump_proposals").main([*arguments, "--dataset", name, "--output", str(path), *random_rpn])
    records = load_proposals_into_dataset(load_dataset(name)[0], str(path))
    for record, (boxes, logits) in zip(records, load_proposals(path, trust_pickle=True).values()):
        assert np.array_equal(record["proposal_objectness_logits"], logits)
        # It orders equal logits as it likes.
        assert set(map(tuple, record["proposal_boxes"].tolist())) == set(map(tuple, boxes.tolist()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["fast_rcnn", "ga_fast_rcnn", "ga_finetune"])
def test_train_and_evaluate(name, engine, shapes, dumped, tmp_path, losses):
    """From the files to metrics; the model has no RPN."""
    (metrics,) = train(name, engine, short_training(shapes, tmp_path, **files(dumped))).values()
    assert_trained(losses)
    assert "AP50" in metrics and "AR@100" not in metrics
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    assert not any("proposal_generator" in key for key in saved) and any("roi_heads" in key for key in saved)


@pytest.mark.parametrize("engine", ENGINES)
def test_fine_tuning_starts_from_a_detector_without_its_rpn(engine, shapes, dumped, tmp_path):
    """A Faster R-CNN's weights are all taken but the RPN's; with learning rate 0 they stay as they are."""
    faster = overrides(shapes, tmp_path / "faster", **{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    train("faster_rcnn", engine, faster)
    weights = tmp_path / "faster" / "model_final.pth"
    more = files(dumped) | {"MODEL.WEIGHTS": str(weights), "SOLVER.BASE_LR": 0.0, "SOLVER.MAX_ITER": 1}
    train("ga_finetune", engine, overrides(shapes, tmp_path / "tuned", **more))
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
    from ga_scope.integrations.detectron2 import run as d2
    from ga_scope.integrations.detectron2.predictor import Predictor as Detectron2Predictor

    sizes = {"INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 200, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1}
    opts = overrides(shapes, tmp_path, **files(dumped), **sizes)
    model = randomise(build_model(builtin.setup(config("ga_fast_rcnn"), opts)))
    torch.save({"model": to_detectron2(model.state_dict())}, tmp_path / "fast.pth")
    opts += ["MODEL.WEIGHTS", str(tmp_path / "fast.pth")]
    ours = BuiltinPredictor(builtin.setup(config("ga_fast_rcnn"), opts))
    theirs = Detectron2Predictor(d2.setup(config("ga_fast_rcnn"), opts))
    on_the_fly = BuiltinPredictor(builtin.setup(config("ga_rpn"), random_rpn))
    proposals = load_proposals(dumped / "val.npz")
    seen = 0
    for record in load_dataset(f"val_{shapes.parent.name}")[0]:
        a, b = (p(with_proposals(record, *proposals[str(record["image_id"])])) for p in (ours, theirs))
        assert len(a.boxes) == len(b.boxes) and a.proposals is None
        seen += len(a.boxes)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        assert torch.equal(a.classes, b.classes)
        rpn = on_the_fly(record)
        c = ours(with_proposals(record, rpn.proposals[:50], rpn.proposal_logits[:50]))
        torch.testing.assert_close(a.boxes, c.boxes)
    assert seen > 20


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "more, message",
    [
        ({"DATASETS.PROPOSAL_FILES_TRAIN": ()}, "DATASETS.PROPOSAL_FILES_TRAIN: expected 1 files.*got 0"),
        ({"DATASETS.PROPOSAL_FILES_TRAIN": ("/nowhere/p.npz",)}, "/nowhere/p.npz: no such proposal file"),
        ({"DATASETS.PROPOSAL_FILES_TRAIN": ("PKL",)}, "p.pkl: expected an .npz file.*TRUST_PROPOSAL_PICKLES True"),
    ],
)
def test_bad_files_are_named(more, message, engine, shapes, dumped, tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04.")
    more = {k: tuple(str(tmp_path / "p.pkl") if f == "PKL" else f for f in v) for k, v in more.items()}
    with pytest.raises(SystemExit, match=message):
        train("fast_rcnn", engine, overrides(shapes, tmp_path, **(files(dumped) | more)))


def test_generator_and_loading_must_agree(shapes, dumped, tmp_path):
    opts = overrides(shapes, tmp_path, **files(dumped), **{"MODEL.LOAD_PROPOSALS": False})
    with pytest.raises(SystemExit, match="MODEL.LOAD_PROPOSALS: expected True with .*PrecomputedProposals"):
        train("fast_rcnn", "torchvision", opts)
    opts = overrides(shapes, tmp_path, **files(dumped))
    mapper = Mapper(builtin.setup(config("fast_rcnn"), opts), training=False)
    with pytest.raises(DatasetError, match="expected proposals with the image"):
        mapper(load_dataset(f"val_{shapes.parent.name}")[0][0])


MASKS = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "4"]
ZOO = {"COCO-Detection/faster_rcnn_R_50_FPN_1x": [], "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": MASKS}
FINETUNE = str(ROOT / "configs" / "COCO-Detection" / "ga_finetune_R_50_FPN_3_epochs.yaml")


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
    from detectron2.modeling import build_model as build_detectron2

    from ga_scope.integrations.detectron2 import run as d2

    cfg = d2.setup(FINETUNE, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *ZOO[name]])
    theirs, ours = (without_rpn(model.state_dict()) for model in (zoo_model(name), build_detectron2(cfg)))
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.detectron2
@pytest.mark.parametrize("name, engine", [*((name, "detectron2") for name in ZOO), (next(iter(ZOO)), "torchvision")])
def test_fine_tuning_of_a_zoo_file(name, engine, shapes, dumped, tmp_path):
    """From the zoo's pickle to metrics in one command; with learning rate 0 the detector stays as the file has it."""
    state = zoo_model(name, classes=5).state_dict()
    weights = tmp_path / "model_final.pkl"
    contents = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    weights.write_bytes(pickle.dumps(contents))
    more = files(dumped) | {"MODEL.WEIGHTS": str(weights), "SOLVER.BASE_LR": 0.0, "SOLVER.MAX_ITER": 1}
    opts = overrides(shapes, tmp_path / "tuned", **more, **{"MODEL.ROI_HEADS.NUM_CLASSES": 5})
    arguments = ["--config-file", FINETUNE, "--engine", engine, *opts, *ZOO[name]]
    (metrics,) = main(arguments).values()
    assert "AP50" in metrics and ("segm/AP" in metrics) == (ZOO[name] == MASKS)
    tuned = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=False)["model"]
    expected = without_rpn(state)
    assert set(tuned) == set(expected)
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(tuned[key]), value), key
