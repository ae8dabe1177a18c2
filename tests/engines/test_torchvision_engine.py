"""The built-in engine: training, resuming, evaluation, its configuration, its checkpoints, its training data."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ga_scope.config.build import build_rpn
from ga_scope.engines import base
from ga_scope.engines.loader import train_loader
from ga_scope.engines.torchvision.data import TrainMapper
from ga_scope.engines.torchvision.engine import BuiltinEngine
from ga_scope.modeling.roi_heads import Pooler

from .conftest import (
    CONFIGS,
    TRAINABLE,
    assert_trained,
    config,
    image_size,
    overfitting,
    overrides,
    setup,
    short_training,
)
from .conftest import run as run_engine


def run(name, opts, *flags):
    return run_engine(name, "torchvision", opts, *flags)


@pytest.mark.parametrize("name", TRAINABLE)
def test_train_and_evaluate(name, shapes, tmp_path, capsys, losses):
    run(name, short_training(name, shapes, tmp_path))
    assert_trained(losses)
    printed = capsys.readouterr().out
    assert printed.startswith("engine: torchvision (built-in) | device: cpu (")
    assert printed.splitlines()[0].endswith(f"config: {config(name)}")
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
        short_training(name, shapes, tmp_path / "again", **{"MODEL.WEIGHTS": str(tmp_path / "model_final.pth")}),
        "--eval-only",
    )
    (values,) = again.values()
    for key, value in metrics.items():
        assert value is None or values[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "ga_faster_rcnn",
        pytest.param("ga_retinanet", marks=pytest.mark.long),
        pytest.param("scopenet", marks=pytest.mark.long),
    ],
)
def test_overfits_four_images(model, shapes, four_images, tmp_path):
    (metrics,) = run(model, overfitting(shapes, four_images, tmp_path)).values()
    assert metrics["AP50"] > 0.95, metrics


# ---- mixed precision -----------------------------------------------------------------------------

AMP_MODELS = ["ga_faster_rcnn", "scopenet", "ga_retinanet"]
BASELINES = ["rpn", "retinanet", "rpn_9_anchors", "rpn_refine"]


def finite_losses(output):
    """Whether the run logged losses, all of them finite."""
    lines = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if "loss" in key]
    return bool(losses) and all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", AMP_MODELS + BASELINES)
def test_bfloat16_learns_what_float32_does(name, shapes, tmp_path):
    """One batch, the same samples: every loss within the rounding of bfloat16, every gradient float32 and finite."""
    # At 64 px p6 is one pixel, and torch's bfloat16 gradient of a strided 3x3 convolution of one pixel is not written.
    cfg = setup(name, overrides(shapes, tmp_path, **image_size(128)))
    model, records = BuiltinEngine().build(cfg).train(), BuiltinEngine().training_records(cfg)
    inputs = next(iter(train_loader(cfg, records, TrainMapper(cfg), 0)))
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", enabled=enabled, dtype=torch.bfloat16):
            losses = model(inputs).losses
        sum(losses.values()).backward()
        found.append(losses)
        for parameter in model.parameters():
            assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32)
        model.zero_grad()
    single, half = found
    assert single.keys() == half.keys()
    for key in single:
        torch.testing.assert_close(half[key].float(), single[key], rtol=0.05, atol=0.02)


def test_anchors_are_not_rounded_to_bfloat16():
    """With deltas of zero an RPN's proposals are its anchors, here all of them."""
    strides = (4, 8, 16, 32, 64)
    rpn = build_rpn(setup("rpn", ["MODEL.DEVICE", "cpu"]), 8, strides).eval()
    for parameter in rpn.rpn_head.anchor_deltas.parameters():
        torch.nn.init.zeros_(parameter)
    rpn.nms_thresh, rpn.pre_nms_topk, rpn.post_nms_topk = 1.0, (10**6,) * 2, (10**6,) * 2
    maps = [torch.rand(1, 8, 128 // s, 128 // s) for s in strides]
    with torch.no_grad():
        expected = rpn(maps, [(128, 128)]).proposals
        found = rpn.bfloat16()([f.bfloat16() for f in maps], [(128, 128)]).proposals
    assert found.boxes.dtype == torch.float32 and found.count == expected.count > 3000
    # Equal logits have another order.
    assert sorted(found.boxes[0].tolist()) == sorted(expected.boxes[0].tolist())


def test_pooled_boxes_are_not_rounded_to_bfloat16():
    pooler = Pooler([4], 7, 2)
    feature, image = torch.randn(1, 8, 64, 64).bfloat16(), torch.tensor([0])
    boxes = torch.tensor([[130.6, 71.3, 201.7, 190.4]])  # bfloat16 has 131, 71.5, 202, 190
    expected = pooler([feature.float()], boxes, image)
    found = pooler([feature], boxes, image)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("name", ["ga_faster_rcnn", "faster_rcnn"])
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
    proposals = [part for split in ("TRAIN", "TEST") for part in (f"DATASETS.PROPOSAL_FILES_{split}", "('p.npz',)")]
    engine = BuiltinEngine()
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if "Base" in path.name:
            continue
        more = proposals if "fast_rcnn" in path.name or "finetune" in path.name else []
        model = engine.build(engine.setup(str(path), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *more]))
        assert sum(p.numel() for p in model.parameters()) > 1e6, path


# ---- data ----------------------------------------------------------------------------------------


def image_file(tmp_path, size=(50, 30), name="a.png"):
    path = tmp_path / name
    image = Image.new("RGB", size)
    image.putpixel((0, 0), (10, 20, 30))
    image.save(path)
    return {"file_name": str(path), "image_id": 1, "height": size[1], "width": size[0]}


def test_boxes_follow_resize_and_flip(shapes, tmp_path):
    """So do ignore regions and proposals."""
    sizes = {"INPUT.MIN_SIZE_TRAIN": (60,), "INPUT.MAX_SIZE_TRAIN": 128, "DATASETS.IGNORE_REGIONS": True}
    cfg = setup("ga_faster_rcnn", overrides(shapes, tmp_path, **sizes))
    record = image_file(tmp_path) | {
        "annotations": [{"bbox": [10, 5, 20, 10], "category_id": 3}],
        "ignore_boxes": np.array([[0.0, 0, 5, 5], [45, 20, 50, 30]]),
    }
    mapper, seen = TrainMapper(cfg), set()
    for _ in range(20):
        out = mapper(record)
        assert out["image"].shape == (3, 60, 100) and out["labels"].tolist() == [3]
        seen.add((tuple(out["boxes"][0].tolist()), tuple(map(tuple, out["ignore_boxes"].tolist()))))
    assert seen == {
        ((20.0, 10.0, 60.0, 30.0), ((0.0, 0.0, 10.0, 10.0), (90.0, 40.0, 100.0, 60.0))),
        ((40.0, 10.0, 80.0, 30.0), ((90.0, 0.0, 100.0, 10.0), (0.0, 40.0, 10.0, 60.0))),
    }


@pytest.mark.parametrize("size", [(20, 12), (3, 3)])
def test_images_smaller_than_the_largest_stride(size, shapes, tmp_path):
    """An image of a few pixels: padded to one stride, still one location on the last level."""
    sizes = {"INPUT.MIN_SIZE_TEST": min(size), "INPUT.MAX_SIZE_TEST": max(size)}
    cfg, engine = setup("ga_faster_rcnn", overrides(shapes, tmp_path, **sizes)), BuiltinEngine()
    model, x = engine.build(cfg), base.TestMapper(cfg)(image_file(tmp_path, size))
    (found,) = engine.image_results([x], engine.infer(model, [x]))
    assert found.boxes.shape[1] == 4 and found.locations > 0
    losses = model.train()([x | {"boxes": torch.tensor([[0.0, 0, 3, 3]]), "labels": torch.tensor([0])}] * 2).losses
    assert all(loss.isfinite() for loss in losses.values())
