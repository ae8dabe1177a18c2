"""Models made faster give the same detections."""

import importlib.util

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import ga_scope
from ga_scope.optimize import fold_norms

from .engines.conftest import ENGINES, built
from .export.models import MODELS, Backbone, awake, batch, faster_rcnn, scopenet
from .export.same import assert_same

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def inputs(images=2, height=192, width=256):
    pixels, sizes = batch(images, height, width)
    return [{"image": image[:, :h, :w]} for image, (h, w) in zip(pixels, sizes.tolist())]


def detect(model, images):
    with torch.no_grad():
        results = model(images)
    found = results.proposals if results.detections is None else results.detections
    return [part for name, part in zip(found._fields, found) if name != "origins"]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_detections(name):
    model, images = awake(MODELS[name]()), inputs()
    expected = detect(model, images)
    fast = ga_scope.optimize_for_inference(model)
    assert not any(isinstance(part, NORMS) for part in fast.modules())
    assert any(isinstance(part, NORMS) for part in model.modules()), "the model itself is left as it was"
    assert_same(detect(fast, images), expected)
    assert int(expected[-1].sum()) > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_every_norm_of_a_resnet_is_folded(engine, norm):
    opts = ["MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", "BN" if norm == "BN" else ""]
    model = built("ga_rpn", ["MODEL.FPN.OUT_CHANNELS", "32", *opts], engine)
    fast = fold_norms(with_statistics(model))
    left = [name for name, part in fast.named_modules() if "BatchNorm" in type(part).__name__]
    assert left == []
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for name, expected in model.backbone(image).items():
            scale = float(expected.abs().max())
            torch.testing.assert_close(fast.backbone(image)[name], expected, rtol=1e-4, atol=1e-5 * scale)


def with_statistics(model):
    for name, value in model.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("norm.bias"):
            value.normal_(std=0.1)
    return model.eval()


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_backbones_of_timm(name):
    """Norms with activations inside, depthwise convolutions, convolutions that no norm follows, other norms."""
    from ga_scope.modeling.timm_stages import TimmStages

    model = with_statistics(awake(faster_rcnn()))
    model.backbone = with_statistics(TimmStages(name))
    fast = fold_norms(model)
    assert not any("BatchNorm" in type(part).__name__ for part in fast.backbone.modules())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for level, expected in model.backbone(image).items():
            scale = float(expected.abs().max())
            torch.testing.assert_close(fast.backbone(image)[level], expected, rtol=1e-3, atol=1e-5 * scale)


class Awkward(Backbone):
    """A norm that something else stands beside, one that runs twice, and one before its convolution."""

    def __init__(self):
        super().__init__()
        self.seen, self.twice, self.before = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.seen_norm, self.twice_norm, self.before_norm = (nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, images):
        features = super().forward(images)
        for name, x in features.items():
            y = self.seen(x)
            y = self.seen_norm(y) + y
            features[name] = self.before(self.before_norm(self.twice_norm(self.twice(y)).relu()))
        return features


def test_a_norm_stays_where_something_else_reads_the_convolution():
    model = scopenet()
    model.backbone = Awkward()
    images = inputs()
    fast = ga_scope.optimize_for_inference(awake(model))
    names = {name for name, part in fast.backbone.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert names == {"seen_norm", "twice_norm", "before_norm"}
    assert_same(detect(fast, images), detect(model, images))


def test_half_the_bits_in_convolutions_and_all_in_boxes_and_scores():
    for make in (faster_rcnn, scopenet, MODELS["GA-RetinaNet"], MODELS["ScopeNet with a quality network"]):
        fast = ga_scope.optimize_for_inference(awake(make()), torch.bfloat16)
        convolutions = [part for part in fast.modules() if isinstance(part, nn.Conv2d)]
        assert {part.weight.dtype for part in convolutions} == {torch.bfloat16}
        boxes, scores, *_ = detect(fast, inputs())
        assert boxes.dtype == scores.dtype == torch.float32
        assert int((scores > 0).sum()) > 0 and boxes.isfinite().all()
        # Not rounded to bfloat16 on their way.
        assert (boxes != boxes.bfloat16().float()).any() and (scores != scores.bfloat16().float()).any()


def test_towers_with_a_norm_run_everywhere():
    fast = ga_scope.optimize_for_inference(awake(scopenet()))
    assert fast.detector.sparse_tower
    model = awake(scopenet())
    model.detector.head.localization_tower.insert(1, nn.GroupNorm(4, 8))
    fast = ga_scope.optimize_for_inference(model)
    assert not fast.detector.sparse_tower


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match=r"dtype: expected torch.float32 or torch.bfloat16, got torch.float16"):
        ga_scope.optimize_for_inference(awake(scopenet()), torch.float16)
    with pytest.raises(ValueError, match="model: expected one of this project, with a backbone, got Conv2d"):
        ga_scope.optimize_for_inference(nn.Conv2d(3, 3, 1))
