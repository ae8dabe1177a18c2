"""The built-in engine: training, resuming, evaluation, its configuration, its checkpoints, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from ga_scope.checkpoint import CheckpointError
from ga_scope.config import ConfigError
from ga_scope.data.coco import DatasetError
from ga_scope.integrations.torchvision import engine
from ga_scope.integrations.torchvision.checkpoint import from_detectron2, to_detectron2
from ga_scope.integrations.torchvision.data import EndlessShuffle, Mapper, read_image, resized_shape
from ga_scope.integrations.torchvision.models import build_model
from ga_scope.integrations.torchvision.roi_heads import AlignedPooler
from ga_scope.integrations.torchvision.run import load_model, setup
from ga_scope.train import main

from .conftest import assert_trained, image_size, overfitting, overrides, randomise, short_training

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [p.stem for p in sorted((CONFIGS / "shapes").glob("[!B]*.yaml"))]
# test_fast_rcnn.py trains those that read proposals.
TRAINABLE = [n for n in SMALL if "fast_rcnn" not in n and "finetune" not in n]


def shapes_config(name):
    return str(CONFIGS / "shapes" / f"{name}.yaml")


def run(name, opts, *flags):
    return main(["--config-file", shapes_config(name), "--engine", "torchvision", *flags, *opts])


@pytest.mark.parametrize("name", TRAINABLE)
def test_train_and_evaluate(name, shapes, tmp_path, capsys, losses):
    run(name, short_training(shapes, tmp_path))
    assert_trained(losses)
    printed = capsys.readouterr().out
    assert printed.startswith("engine: torchvision (built-in) | device: cpu (")
    assert printed.splitlines()[0].endswith(f"config: {shapes_config(name)}")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key in ("AR@100", "AR@300", "AR@1000", "AR_S@100", "AR_M@100"):
        assert (key in metrics) == ("rcnn" in name or "rpn" in name)
    assert ("anchors_per_image" in metrics) == ("active_fraction" in metrics) == ("scopenet" not in name)
    assert ("AP50" in metrics) == ("rpn" not in name)
    assert (tmp_path / "model_final.pth").exists() and (tmp_path / "config.yaml").exists()
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 1
    assert list(tmp_path.glob("events.out.tfevents*"))
    # The same numbers again from the checkpoint.
    again = run(
        name,
        short_training(shapes, tmp_path / "again", **{"MODEL.WEIGHTS": str(tmp_path / "model_final.pth")}),
        "--eval-only",
    )
    (values,) = again.values()
    for key, value in metrics.items():
        assert value is None or values[key] == pytest.approx(value, abs=1e-9), key


def test_resume_continues_where_it_stopped(shapes, tmp_path):
    """Stopped after 3 of 5 iterations and resumed equals 5 in one go: parameters, optimizer, data order."""
    name, more = "ga_rpn_R_18_FPN", {"DATASETS.TEST": (), "SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.MAX_ITER": 5}
    run(name, overrides(shapes, tmp_path / "whole", **more))
    run(name, overrides(shapes, tmp_path / "parts", **more))
    parts = tmp_path / "parts"
    (parts / "last_checkpoint").write_text("model_0000002.pth")
    run(name, overrides(shapes, parts, **more), "--resume")
    assert "iteration" in torch.load(parts / "model_final.pth")
    log = [json.loads(line)["iteration"] for line in (parts / "training.jsonl").read_text().splitlines()]
    assert log == [5, 5]


def test_resume_of_a_finished_run_only_evaluates(shapes, tmp_path):
    opts = overrides(shapes, tmp_path)
    run("ga_rpn_R_18_FPN", opts)
    before = (tmp_path / "model_final.pth").stat().st_mtime_ns
    assert run("ga_rpn_R_18_FPN", opts, "--resume")
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == before


def test_an_interrupted_run_can_be_resumed(shapes, tmp_path, monkeypatch):
    opts = overrides(shapes, tmp_path, **{"SOLVER.MAX_ITER": 6, "DATASETS.TEST": ()})
    step, calls = engine.Trainer._step, []

    def fails_later(self, inputs, rate):
        calls.append(1)
        if len(calls) == 4:
            raise DatasetError("broken.jpg: cannot be read")
        return step(self, inputs, rate)

    monkeypatch.setattr(engine.Trainer, "_step", fails_later)
    with pytest.raises(SystemExit, match="broken.jpg"):
        run("ga_rpn_R_18_FPN", opts)
    assert torch.load(tmp_path / "model_0000002.pth")["iteration"] == 2
    monkeypatch.setattr(engine.Trainer, "_step", step)
    run("ga_rpn_R_18_FPN", opts, "--resume")
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 5


def test_a_failed_evaluation_leaves_a_checkpoint(shapes, tmp_path, monkeypatch):
    def fails(cfg, model):
        raise DatasetError("broken.jpg: cannot be read")

    monkeypatch.setattr(engine, "evaluate", fails)
    with pytest.raises(SystemExit, match="broken.jpg"):
        run("ga_rpn_R_18_FPN", overrides(shapes, tmp_path, **{"SOLVER.MAX_ITER": 6, "TEST.EVAL_PERIOD": 2}))
    assert torch.load(tmp_path / "model_0000001.pth")["iteration"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ga_faster_rcnn_R_18_FPN", "ga_retinanet_R_18_FPN", "scopenet_R_18_FPN"])
def test_overfits_four_images(model, shapes, four_images, tmp_path):
    (metrics,) = run(model, overfitting(shapes, four_images, tmp_path)).values()
    assert metrics["AP50"] > 0.95, metrics


# ---- mixed precision -----------------------------------------------------------------------------

AMP_MODELS = ["ga_faster_rcnn_R_18_FPN", "scopenet_R_18_FPN", "ga_retinanet_R_18_FPN"]
BASELINES = ["rpn_R_18_FPN", "retinanet_R_18_FPN", "rpn_9_anchors_R_18_FPN", "rpn_refine_R_18_FPN"]


def finite_losses(output):
    """Whether the run logged losses, all of them finite."""
    lines = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if "loss" in key]
    return bool(losses) and all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", AMP_MODELS + BASELINES)
def test_bfloat16_learns_what_float32_does(name, shapes, tmp_path):
    """One batch, the same samples: every loss within the rounding of bfloat16, every gradient float32 and finite."""
    # At 64 px p6 is one pixel, and torch's bfloat16 gradient of a strided 3x3 convolution of one pixel is not written.
    cfg = setup(shapes_config(name), overrides(shapes, tmp_path, **image_size(128)))
    trainer = engine.Trainer(cfg)
    inputs = next(iter(engine.build_train_loader(cfg, 0, 0)))
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", enabled=enabled, dtype=torch.bfloat16):
            losses = trainer.model(inputs)
        sum(losses.values()).backward()
        found.append(losses)
        for parameter in trainer.model.parameters():
            assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32)
        trainer.model.zero_grad()
    single, half = found
    assert single.keys() == half.keys()
    for key in single:
        torch.testing.assert_close(half[key].float(), single[key], rtol=0.05, atol=0.02)


def test_anchors_are_not_rounded_to_bfloat16(shapes, tmp_path):
    cfg = setup(shapes_config("rpn_R_18_FPN"), overrides(shapes, tmp_path))
    generator = build_model(cfg).proposal_generator.anchor_generator
    images = ImageList(torch.zeros(1, 3, 256, 256), [(256, 256)])
    single = [torch.zeros(1, 8, 256 // s, 256 // s) for s in (4, 8, 16, 32, 64)]
    (expected,), (found,) = generator(images, single), generator(images, [f.bfloat16() for f in single])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_pooled_boxes_are_not_rounded_to_bfloat16():
    pooler = AlignedPooler(["p2"], 7, 2)
    features = {"p2": torch.randn(1, 8, 64, 64).bfloat16()}
    boxes = [torch.tensor([[130.6, 71.3, 201.7, 190.4]])]  # bfloat16 has 131, 71.5, 202, 190
    expected = pooler({"p2": features["p2"].float()}, boxes, None)
    found = pooler(features, boxes, None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("name", ["ga_faster_rcnn_R_18_FPN", "faster_rcnn_R_18_FPN"])
def test_amp_trains(name, shapes, tmp_path):
    run(name, overrides(shapes, tmp_path, **{"SOLVER.AMP.ENABLED": True}))
    assert finite_losses(tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AMP_MODELS)
def test_amp_on_a_gpu(name, shapes, tmp_path):
    run(name, overrides(shapes, tmp_path, **{"MODEL.DEVICE": "cuda", "SOLVER.AMP.ENABLED": True}))
    assert finite_losses(tmp_path)


# ---- configuration -------------------------------------------------------------------------------


def test_every_configuration_builds():
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if "Base" in path.name:
            continue
        model = build_model(setup(str(path), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))
        assert sum(p.numel() for p in model.parameters()) > 1e6, path


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY: .*Non-existent"),
        (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON: expected False, got True: .*detectron2"),
        (["MODEL.RESNETS.DEPTH", "20"], "MODEL.RESNETS.DEPTH: expected 18, 34, 50, 101, 152, got 20"),
        (["MODEL.BACKBONE.NAME", "build_vit"], "MODEL.BACKBONE.NAME: expected 'build_resnet_fpn_backbone'"),
        (["SOLVER.OPTIMIZER", "LION"], "SOLVER.OPTIMIZER: expected 'SGD', 'ADAMW', got 'LION'"),
        (["MODEL.RPN.IN_FEATURES", "['res4']"], r"MODEL.RPN.IN_FEATURES: expected names of p2 to p6, got \['res4'\]"),
        (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE: cuda is not available here; append MODEL.DEVICE cpu"),
        (["SOLVER.MAX_ITER"], "overrides: expected KEY VALUE pairs"),
        (["SOLVER.MAX_ITER", "'many'"], "SOLVER.MAX_ITER: .*Type mismatch"),
        (["DATASETS.TRAIN", "('nowhere',)"], "no dataset 'nowhere'"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "MODEL.ROI_HEADS.NUM_CLASSES: expected 5, the categories of"),
        (["MODEL.META_ARCHITECTURE", "YOLO"], "MODEL.META_ARCHITECTURE: expected .*'ScopeNet', got 'YOLO'"),
        (
            ["MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS", "shapes"],
            "MODEL.GUIDED_ANCHORING.ADAPTION.OFFSETS: expected 'shape', 'features', 'none', got 'shapes'",
        ),
        (["MODEL.GUIDED_ANCHORING.SHAPE.MODE", "all"], "SHAPE.MODE: expected 'sampled', 'exact', got 'all'"),
        (["MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD", "2.0"], "LOCATION.THRESHOLD: expected a probability, got 2.0"),
        (["MODEL.GUIDED_ANCHORING.LOCATION.TOPK_TEST", "-1"], r"LOCATION.TOPK_TEST: expected 0 .*, got -1"),
    ],
)
def test_bad_configurations_are_named(opts, message, shapes, tmp_path):
    if torch.cuda.is_available() and "cuda" in opts:
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit, match=message):
        run("ga_faster_rcnn_R_18_FPN", [*overrides(shapes, tmp_path), *opts])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.SCOPENET.NUM_CLASSES", "80"], "MODEL.SCOPENET.NUM_CLASSES: expected 5, the categories of"),
        (["MODEL.SCOPENET.NORM", "BN"], "MODEL.SCOPENET.NORM: expected '', 'GN', got 'BN'"),
        (["MODEL.SCOPENET.RESCORE", "max"], "MODEL.SCOPENET.RESCORE: expected 'none', 'mean', 'distribution', got"),
        (
            ["MODEL.SCOPENET.BINS.TARGETS", "hard"],
            "MODEL.SCOPENET.BINS.TARGETS: expected 'one_hot', 'soft', got 'hard'",
        ),
        (["MODEL.SCOPENET.BINS.NUM", "0"], "MODEL.SCOPENET.BINS.NUM, .SIZE: expected at least 1 bin .* got 0, 1.0"),
        (["MODEL.SCOPENET.LOSS.BOX", "l1"], "MODEL.SCOPENET.LOSS.BOX: expected 'iou', 'giou', 'diou', got 'l1'"),
        (["MODEL.SCOPENET.TARGETS.RANGES", "[64]"], "MODEL.SCOPENET.TARGETS.RANGES: expected 4 limits .* got 1"),
        (["MODEL.SCOPENET.IN_FEATURES", "['p2', 'p6']"], "MODEL.SCOPENET.IN_FEATURES: expected names of p3 to p7"),
        (["MODEL.FPN.IN_FEATURES", "['res4', 'res5']"], "MODEL.FPN.IN_FEATURES: expected"),
    ],
)
def test_bad_configurations_of_scopenet_are_named(opts, message, shapes, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run("scopenet_R_18_FPN", [*overrides(shapes, tmp_path), *opts])


def test_unknown_keys_in_a_file_are_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  ROI_KEYPOINT_HEAD:\n    NUM_KEYPOINTS: 17\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: .*MODEL.ROI_KEYPOINT_HEAD.*built-in engine cannot honour"):
        setup(str(path))
    with pytest.raises(ConfigError, match="absent.yaml"):
        setup(str(tmp_path / "absent.yaml"))


def test_several_gpus_are_refused(shapes, tmp_path):
    with pytest.raises(SystemExit, match="--num-gpus.*one device"):
        run("ga_rpn_R_18_FPN", overrides(shapes, tmp_path), "--num-gpus", "2")


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name):
    model = randomise(build_model(setup(shapes_config(name), ["MODEL.DEVICE", "cpu"])))
    state = model.state_dict()
    back = from_detectron2(to_detectron2(state), model)
    assert set(back) == {k for k in state if not k.endswith("num_batches_tracked")}
    for key, value in back.items():
        if "bbox_pred" in key and "roi" in key:  # detectron2 has no box for the background
            assert torch.equal(value[4:], state[key][4:]) and (value[:4] == 0).all()
        else:
            assert torch.equal(value, state[key]), key


def test_checkpoints_that_do_not_fit(shapes, tmp_path):
    config, device = shapes_config("ga_faster_rcnn_R_18_FPN"), ["MODEL.DEVICE", "cpu"]
    five = build_model(setup(config, device))
    path = tmp_path / "five.pth"
    torch.save({"model": to_detectron2(five.state_dict())}, path)
    seven = setup(config, [*device, "MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.WEIGHTS", str(path)])
    with pytest.raises(CheckpointError, match=r"five.pth: does not fit the model: .*cls_score.*\(6.* in the file, \(8"):
        load_model(seven)
    # To start from: everything else is used, what does not fit starts fresh.
    opts = overrides(shapes, tmp_path / "out", **{"MODEL.WEIGHTS": str(path), "SOLVER.MAX_ITER": 1})
    run("ga_faster_rcnn_R_18_FPN", opts)
    for contents, message in ((b"garbage", "not a checkpoint that can be read"), (None, "not found")):
        bad = tmp_path / "bad.pth"
        bad.unlink(missing_ok=True)
        if contents:
            bad.write_bytes(contents)
        with pytest.raises(CheckpointError, match=f"bad.pth: .*{message}"):
            load_model(setup(config, [*device, "MODEL.WEIGHTS", str(bad)]))
    other = tmp_path / "other.pth"
    torch.save({"model": {"weight": torch.zeros(3)}}, other)
    with pytest.raises(SystemExit, match="other.pth: no parameter fits the model"):
        run("ga_faster_rcnn_R_18_FPN", overrides(shapes, tmp_path / "o", **{"MODEL.WEIGHTS": str(other)}))


# ---- data ----------------------------------------------------------------------------------------


def image_file(tmp_path, size=(50, 30), name="a.png"):
    path = tmp_path / name
    image = Image.new("RGB", size)
    image.putpixel((0, 0), (10, 20, 30))
    image.save(path)
    return {"file_name": str(path), "image_id": 1, "height": size[1], "width": size[0], "annotations": []}


def test_broken_images_are_named(tmp_path):
    record = image_file(tmp_path)
    whole = Path(record["file_name"]).read_bytes()
    Path(record["file_name"]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="a.png: cannot be read as an image"):
        read_image(record, "RGB")
    with pytest.raises(DatasetError, match="b.png: no such image"):
        read_image(record | {"file_name": str(tmp_path / "b.png")}, "RGB")
    record = image_file(tmp_path)
    with pytest.raises(DatasetError, match=r"a.png: expected 60 x 30 pixels \(the annotations\), got 50 x 30"):
        read_image(record | {"width": 60}, "RGB")


def test_boxes_follow_resize_and_flip(shapes, tmp_path):
    cfg = setup(
        shapes_config("ga_faster_rcnn_R_18_FPN"),
        overrides(shapes, tmp_path, **{"INPUT.MIN_SIZE_TRAIN": (60,), "INPUT.MAX_SIZE_TRAIN": 128}),
    )
    record = image_file(tmp_path) | {
        "annotations": [
            {"bbox": [10, 5, 20, 10], "category_id": 3, "iscrowd": 0},
            {"bbox": [0, 0, 5, 5], "category_id": 1, "iscrowd": 1},
        ]
    }
    mapper, seen = Mapper(cfg, training=True), set()
    for _ in range(20):
        out = mapper(record)
        assert out["image"].shape == (3, 60, 100) and out["labels"].tolist() == [3]  # crowds are left out
        seen.add(tuple(out["boxes"][0].tolist()))
    assert seen == {(20.0, 10.0, 60.0, 30.0), (40.0, 10.0, 80.0, 30.0)}


def test_resized_shape():
    assert resized_shape(480, 640, 800, 1333) == (800, 1067)
    assert resized_shape(300, 900, 800, 1333) == (444, 1333)
    assert resized_shape(20, 20, 800, 1333) == (800, 800)
    assert resized_shape(20, 30, 0, 1333) == (20, 30)


def test_order_of_images_is_endless_and_can_be_skipped():
    whole = [i for i, _ in zip(EndlessShuffle(7, seed=3), range(30))]
    assert sorted(whole[:7]) == list(range(7)) and whole[:7] != whole[7:14]
    assert [i for i, _ in zip(EndlessShuffle(7, seed=3, skip=10), range(20))] == whole[10:]


@pytest.mark.parametrize("size", [(20, 12), (3, 3)])
def test_images_smaller_than_the_largest_stride(size, shapes, tmp_path):
    """An image of a few pixels: padded to one stride, still one location on the last level."""
    cfg = setup(
        shapes_config("ga_faster_rcnn_R_18_FPN"),
        overrides(shapes, tmp_path, **{"INPUT.MIN_SIZE_TEST": min(size), "INPUT.MAX_SIZE_TEST": max(size)}),
    )
    model = build_model(cfg)
    record = image_file(tmp_path, size)
    (out,) = model.eval()([Mapper(cfg, training=False)(record)])
    assert out["boxes"].shape[1] == 4
    model.train()
    x = Mapper(cfg, training=False)(record)
    losses = model([x | {"boxes": torch.tensor([[0.0, 0, 3, 3]]), "labels": torch.tensor([0])}] * 2)
    assert all(loss.isfinite() for loss in losses.values())
