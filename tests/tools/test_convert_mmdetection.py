"""Checkpoints of MMDetection: its names, and its GA-RPN head written out from what it is known to compute."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.integrations.torchvision import run as builtin
from ga_scope.integrations.torchvision.models import build_model

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "COCO-Detection" / "ga_faster_rcnn_R_50_FPN_1x_release.yaml")

spec = importlib.util.spec_from_file_location("convert_mmdetection", ROOT / "tools" / "convert_mmdetection.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def mmdetection_state():
    """Shapes and names of ga_faster_r50_caffe_fpn_1x_coco, random."""
    body = torchvision.models.resnet50(weights=None)
    state = {f"backbone.{k}": v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    for i, channels in enumerate((256, 512, 1024, 2048)):
        state |= conv(f"neck.lateral_convs.{i}.conv", 256, channels, 1) | conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    state |= conv("rpn_head.rpn_conv", 256, 256, 3)
    state |= conv("rpn_head.conv_loc", 1, 256, 1) | conv("rpn_head.conv_shape", 2, 256, 1)
    state["rpn_head.feature_adaption.conv_offset.weight"] = torch.randn(72, 2, 1, 1) * 0.3
    state["rpn_head.feature_adaption.conv_adaption.weight"] = torch.randn(256, 256, 3, 3) * 0.02
    state |= conv("rpn_head.conv_cls", 1, 256, 1) | conv("rpn_head.conv_reg", 4, 256, 1)
    for name, rows, columns in (("shared_fcs.0", 1024, 12544), ("shared_fcs.1", 1024, 1024), ("fc_cls", 81, 1024)):
        state |= linear(f"roi_head.bbox_head.{name}", rows, columns)
    return state | linear("roi_head.bbox_head.fc_reg", 320, 1024)


def conv(name, rows, columns, size):
    return {f"{name}.weight": torch.randn(rows, columns, size, size) * 0.02, f"{name}.bias": torch.randn(rows) * 0.1}


def linear(name, rows, columns):
    return {f"{name}.weight": torch.randn(rows, columns) * 0.01, f"{name}.bias": torch.randn(rows) * 0.1}


@pytest.fixture
def converted(tmp_path, monkeypatch):
    state = mmdetection_state()
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": state}, tmp_path / "theirs.pth")
    monkeypatch.setattr("sys.argv", ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")])
    tool.main()
    return state, tmp_path / "ours.pth"


def test_every_parameter_of_the_model_is_filled(converted):
    state, path = converted
    cfg = builtin.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(path)])
    model = builtin.load_model(cfg)  # strict: nothing may be missing, and every shape must fit
    assert torch.equal(model.backbone.body.layer3[4].bn2.bias, state["backbone.layer3.4.bn2.bias"])
    assert torch.equal(model.roi_heads.box_predictor.cls_score.bias[1:], state["roi_head.bbox_head.fc_cls.bias"][:80])
    assert torch.equal(model.roi_heads.box_predictor.cls_score.bias[:1], state["roi_head.bbox_head.fc_cls.bias"][80:])


@pytest.mark.detectron2
def test_detectron2_takes_it_too(converted):
    from ga_scope.integrations.detectron2 import run as d2

    d2.load_model(d2.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(converted[1])]))


def reference(state, x, stride):
    """Location probabilities (H W), boxes (H W, 4) and scores (H W) of one level by the release's rules."""

    def layer(name, x, **settings):
        return F.conv2d(x, state[f"rpn_head.{name}.weight"], state[f"rpn_head.{name}.bias"], **settings)

    x = layer("rpn_conv", x, padding=1).relu()
    shape = layer("conv_shape", x)
    offset = F.conv2d(shape, state["rpn_head.feature_adaption.conv_offset.weight"])
    weight = state["rpn_head.feature_adaption.conv_adaption.weight"]
    adapted = torchvision.ops.deform_conv2d(x, offset, weight, padding=1).relu()
    delta = layer("conv_reg", adapted)[0].flatten(1) * torch.tensor([0.07, 0.07, 0.11, 0.11])[:, None]
    width, height = 8 * stride * torch.exp(0.14 * shape[0].flatten(1))
    y, x_ = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    center_x, center_y = x_.flatten() * stride + delta[0] * width, y.flatten() * stride + delta[1] * height
    half_x, half_y = 0.5 * width * delta[2].exp(), 0.5 * height * delta[3].exp()
    boxes = torch.stack([center_x - half_x, center_y - half_y, center_x + half_x, center_y + half_y], 1)
    return layer("conv_loc", x).flatten().sigmoid(), boxes, layer("conv_cls", adapted).flatten()


@torch.no_grad()
def test_proposals_are_those_of_the_release():
    state = mmdetection_state()
    model = build_model(builtin.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])).eval()
    rpn = model.proposal_generator.rpn
    prefix = "proposal_generator.rpn."
    ours = {k.removeprefix(prefix): v for k, v in tool.convert(state).items() if k.startswith(prefix)}
    rpn.load_state_dict(ours)
    features = [torch.randn(1, 256, 20 // 2**i, 24 // 2**i) for i in range(3)]
    rpn.strides, rpn.nms_thresh = (4, 8, 16), 1.0
    size = (10_000, 10_000)  # nothing is clipped at these sides
    (proposals,), _ = rpn(features, [size])
    found = [reference(state, x, stride) for x, stride in zip(features, rpn.strides)]
    probability, boxes, scores = (torch.cat(parts) for parts in zip(*found))
    active = probability >= 0.01
    assert 0.3 < active.float().mean() <= 1
    order = scores[active].argsort(descending=True)[:300]
    expected = boxes[active][order].clamp(min=0)
    kept = (expected[:, 2:] > expected[:, :2]).all(1)
    torch.testing.assert_close(proposals.boxes, expected[kept][: len(proposals.boxes)], rtol=1e-4, atol=1e-3)


def test_complement_negates_the_location_branch():
    state = mmdetection_state()
    plain, negated = tool.convert(state), tool.convert(state, complement=True)
    for name, value in plain.items():
        assert torch.equal(negated[name], -value if ".location." in name else value), name


@pytest.mark.parametrize(
    "contents, message",
    [
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "theirs.pth: expected the parameters of a GA-RPN"),
        (
            {"state_dict": {"rpn_head.feature_adaption.x": torch.zeros(1), "mask_head.y": torch.zeros(1)}},
            "theirs.pth: mask_head.y: no parameter of a GA-RPN",
        ),
    ],
)
def test_other_files_are_refused(contents, message, tmp_path, monkeypatch):
    torch.save(contents, tmp_path / "theirs.pth")
    monkeypatch.setattr("sys.argv", ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")])
    with pytest.raises(SystemExit, match=message):
        tool.main()
    assert not (tmp_path / "ours.pth").exists()
