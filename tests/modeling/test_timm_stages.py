"""Networks of timm as the stages of a pyramid."""

import re

import pytest
import torch
from torch import nn

from ga_scope.modeling.timm_stages import TimmStages, timm_pixels

timm = pytest.importorskip("timm", reason="needs timm")

SIDE = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_features_are_timms(name):
    """The stages hold what timm's own feature extractor gives for the same weights."""
    torch.manual_seed(0)
    stages = TimmStages(name).eval()
    more = {"strict_img_size": False} if "swin" in name else {}
    theirs = timm.create_model(name, features_only=True, **more).eval()
    state = stages.model.state_dict()
    renamed = {}
    for key in theirs.state_dict():
        # a wrapper of timm numbers the blocks of a list with underscores
        renamed[key] = state[key if key in state else key.replace("_", ".", 1)]
    theirs.load_state_dict(renamed)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours, expected = stages(images), theirs(images)
    if "swin" in name:
        expected = [feature.permute(0, 3, 1, 2) for feature in expected]
    by_stride = {96 // feature.shape[3]: feature for feature in expected}
    assert list(ours) == list(SIDE)
    for stage, feature in ours.items():
        assert feature.shape[1] == stages.channels[stage]
        torch.testing.assert_close(feature, by_stride[SIDE[stage]])


def test_sizes_stay_simple_in_an_export():
    """SAME padding worked out from the sizes made an export take a quarter of an hour."""
    rows, columns = (32 * torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    stages = TimmStages("tf_efficientnet_lite0").eval()
    program = torch.export.export(stages, (torch.zeros(1, 3, 96, 160),), dynamic_shapes=({2: rows, 3: columns},))
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    sizes = [str(side) for feature in outputs for side in feature.meta["val"].shape[2:]]
    assert len(sizes) == 8 and all(re.fullmatch(r"(\d\*)?\w+", size) for size in sizes), sizes


@pytest.mark.parametrize(
    "name, freeze_at, frozen, training",
    [
        ("resnet18", 0, [], ["conv1", "layer1", "layer4"]),
        ("resnet18", 1, ["conv1", "bn1"], ["layer1", "layer2"]),
        ("resnet18", 2, ["conv1", "bn1", "layer1"], ["layer2", "layer3"]),
        ("resnet18", 3, ["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4"]),
        ("tf_efficientnet_lite0", 2, ["conv_stem", "bn1", "blocks.0", "blocks.1"], ["blocks.2", "blocks.4"]),
        ("convnext_atto", 2, ["stem", "stages.0"], ["stages.2", "stages.3"]),
    ],
)
@pytest.mark.parametrize("first", [2, 3])
def test_frozen_stages_do_not_train(name, freeze_at, frozen, training, first):
    """Neither by a gradient nor by the statistics of their batches, whichever stages are handed on."""
    torch.manual_seed(0)
    stages = TimmStages(name, first=first, freeze_at=freeze_at).train()
    before = {key: value.clone() for key, value in stages.model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in stages.parameters() if p.requires_grad], lr=1.0)
    sum(feature.square().mean() for feature in stages(torch.randn(4, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {key for key, value in stages.model.state_dict().items() if not value.equal(before[key])}
    for part in frozen:
        assert not [key for key in changed if key.startswith(f"{part}.")], part
    for part in training:
        assert [key for key in changed if key.startswith(f"{part}.")], part
    assert not [p for p in stages.parameters() if not p.requires_grad and p.grad is not None]


def test_frozen_normalisation_keeps_its_numbers():
    stages = TimmStages("resnet18", norm="FrozenBN").train()
    norms = [m for m in stages.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad or m.bias.requires_grad for m in norms)
    assert stages.model.layer1[0].conv1.weight.requires_grad
    before = [m.running_mean.clone() for m in norms]
    stages(torch.randn(2, 3, 64, 64))
    assert all(m.running_mean.equal(mean) for m, mean in zip(norms, before))


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet_18", r"timm .* has no model 'resnet_18'; it has .*resnet"),
        ("vit_tiny_patch16_224", r"vit_tiny_patch16_224: expected features of strides 4, 8, 16 and 32, got strides 16"),
        ("maxvit_tiny_tf_224", r"maxvit_tiny_tf_224 takes no images of 64 x 96 pixels"),
    ],
)
def test_models_without_a_pyramid_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TimmStages(name)


def test_pixels_are_timms():
    assert timm_pixels("tf_efficientnet_lite0") == ([127.5] * 3, [127.5] * 3)
    mean, std = timm_pixels("resnet18")
    assert mean == pytest.approx([123.675, 116.28, 103.53]) and std == pytest.approx([58.395, 57.12, 57.375])
