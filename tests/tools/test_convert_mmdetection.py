"""Checkpoints of MMDetection: names and shapes of its models, and their heads written out from what they compute."""

import contextlib
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from ga_scope.cli.convert import main
from ga_scope.config.build import build_guided_anchor_retinanet
from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.engines.mmdetection import ConversionError, compare, convert, convert_checkpoint, read_checkpoint
from ga_scope.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "COCO-Detection"
CONFIG = str(CONFIGS / "ga_faster_rcnn_R_50_FPN_1x_release.yaml")

# Family: the configuration's name.
FAMILIES = {
    "GA-RPN": "ga_rpn",
    "GA-Fast R-CNN": "ga_fast_rcnn",
    "GA-Faster R-CNN": "ga_faster_rcnn",
    "GA-RetinaNet": "ga_retinanet",
}
# Backbone: blocks of every stage, groups, width of a group.
BACKBONES = {
    "R_50": ([3, 4, 6, 3], 1, 64),
    "R_101": ([3, 4, 23, 3], 1, 64),
    "X_101_32x4d": ([3, 4, 23, 3], 32, 4),
    "X_101_64x4d": ([3, 4, 23, 3], 64, 4),
}


BUILTIN = get_engine("torchvision")


ALONE = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]  # a model without data and proposals


def built(config, opts=()):
    return BUILTIN.build(BUILTIN.setup(str(config), [*ALONE, "MODEL.WEIGHTS", "", *opts])).eval()


def compared_with(opts):
    """A configuration and the state dict of its model."""
    cfg = BUILTIN.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return cfg, BUILTIN.named_state(BUILTIN.build(cfg))


def filled(model, state):
    """The model with every parameter of a converted state, and none left."""
    own = {k: v for k, v in BUILTIN.named_state(model).items() if not k.endswith("num_batches_tracked")}
    assert set(own) == set(state)
    with torch.no_grad():
        for name, value in own.items():
            assert value.shape == state[name].shape, name
            value.copy_(state[name])
    return model


# ---- state dicts as MMDetection has them ----------------------------------------------------------------------------


def mmdetection_state(family="GA-Faster R-CNN", backbone="R_50"):
    """Names and shapes of a model, random; as ga_faster_r50_caffe_fpn_1x_coco and its like."""
    blocks, groups, width = BACKBONES[backbone]
    body = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, blocks, groups=groups, width_per_group=width
    )
    state = {f"backbone.{k}": v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    first = 1 if family == "GA-RetinaNet" else 0
    for i, channels in enumerate((256, 512, 1024, 2048)[first:]):
        state |= conv(f"neck.lateral_convs.{i}.conv", 256, channels, 1) | conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    if family == "GA-RetinaNet":
        state |= conv("neck.fpn_convs.3.conv", 256, 2048, 3) | conv("neck.fpn_convs.4.conv", 256, 256, 3)
        return state | retina_head()
    if family != "GA-Fast R-CNN":
        state |= conv("rpn_head.rpn_conv", 256, 256, 3)
        state |= conv("rpn_head.conv_loc", 1, 256, 1) | conv("rpn_head.conv_shape", 2, 256, 1)
        state["rpn_head.feature_adaption.conv_offset.weight"] = torch.randn(72, 2, 1, 1) * 0.3
        state["rpn_head.feature_adaption.conv_adaption.weight"] = torch.randn(256, 256, 3, 3) * 0.02
        state |= conv("rpn_head.conv_cls", 1, 256, 1) | conv("rpn_head.conv_reg", 4, 256, 1)
    if family != "GA-RPN":
        for name, rows, columns in (("shared_fcs.0", 1024, 12544), ("shared_fcs.1", 1024, 1024), ("fc_cls", 81, 1024)):
            state |= linear(f"roi_head.bbox_head.{name}", rows, columns)
        state |= linear("roi_head.bbox_head.fc_reg", 320, 1024)
    return state


def retina_head(classes=80):
    state = {}
    for i in range(4):
        for name in ("cls_convs", "reg_convs"):
            state |= conv(f"bbox_head.{name}.{i}.conv", 256, 256, 3)
    state |= conv("bbox_head.conv_loc", 1, 256, 1) | conv("bbox_head.conv_shape", 2, 256, 1)
    for name in ("cls", "reg"):
        state[f"bbox_head.feature_adaption_{name}.conv_offset.weight"] = torch.randn(72, 2, 1, 1) * 0.3
        state[f"bbox_head.feature_adaption_{name}.conv_adaption.weight"] = torch.randn(256, 256, 3, 3) * 0.02
    return state | conv("bbox_head.retina_cls", classes, 256, 3) | conv("bbox_head.retina_reg", 4, 256, 3)


def conv(name, rows, columns, size):
    return {f"{name}.weight": torch.randn(rows, columns, size, size) * 0.02, f"{name}.bias": torch.randn(rows) * 0.1}


def linear(name, rows, columns):
    return {f"{name}.weight": torch.randn(rows, columns) * 0.01, f"{name}.bias": torch.randn(rows) * 0.1}


def written(path, content):
    torch.save(content, path)
    return str(path)


# ---- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, backbone", [
    *((family, "R_50") for family in FAMILIES),
    ("GA-RPN", "R_101"), ("GA-RetinaNet", "X_101_32x4d"), ("GA-Faster R-CNN", "X_101_64x4d"),
])  # fmt: skip
def test_every_parameter_of_every_family_is_filled(family, backbone, tmp_path, capsys):
    """Strictly: nothing missing, nothing left, every shape as it is; and every number somewhere in the model."""
    config = CONFIGS / f"{FAMILIES[family]}_{backbone}_FPN_1x_release.yaml"
    state = mmdetection_state(family, backbone)
    source = written(tmp_path / "theirs.pth", {"meta": {}, "state_dict": state})
    assert main([source, str(tmp_path / "ours.pth"), "--config-file", str(config)]) == 0
    printed = capsys.readouterr().out
    converted = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert f"{source}: {family}, {len(converted)} parameters" in printed
    assert f"{len(converted)} parameters match" in printed and "missing: 0" in printed and "unexpected: 0" in printed
    counted = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(converted) == len(counted)
    sums = sorted(value.double().sum().item() for value in counted.values())
    assert sums == pytest.approx(sorted(value.double().sum().item() for value in converted.values()))
    model = filled(built(config), converted)
    if "roi_head.bbox_head.fc_cls.bias" in state:  # the background is the last there as here
        assert torch.equal(model.roi_heads.box_predictor.cls_score.bias, state["roi_head.bbox_head.fc_cls.bias"])


@pytest.mark.detectron2
@pytest.mark.parametrize("family", FAMILIES)
def test_detectron2_takes_it_too(family, tmp_path):
    engine = get_engine("detectron2")
    cfg = engine.setup(CONFIGS / f"{FAMILIES[family]}_R_50_FPN_1x_release.yaml", ALONE)
    target = written(tmp_path / "ours.pth", {"model": convert(mmdetection_state(family)).state})
    Checkpointer(cfg, engine.build(cfg), engine.named_state).load(target)


@torch.no_grad()
@pytest.mark.parametrize("backbone, style", [("R_50", "caffe"), ("R_50", "pytorch"), ("X_101_32x4d", "pytorch")])
def test_features_are_those_of_its_backbone_and_neck(backbone, style):
    """The stride of caffe's ResNets lies in the first 1x1 convolution, pytorch's in the 3x3."""
    blocks, groups, width = BACKBONES[backbone]
    state = mmdetection_state("GA-RetinaNet", backbone)
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name] * 0.5
        if "bn" in name and name.endswith("weight"):
            state[name] = torch.rand_like(state[name]) * 0.5 + 0.5
    body = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, blocks, groups=groups, width_per_group=width
    )
    body.fc = torch.nn.Identity()
    body.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    body.eval()
    if style == "caffe":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    image = torch.randn(1, 3, 64, 96)
    x = body.maxpool(body.relu(body.bn1(body.conv1(image))))
    stages = []
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        stages.append(x := stage(x))

    def neck(name, x, **settings):
        return F.conv2d(x, state[f"neck.{name}.conv.weight"], state[f"neck.{name}.conv.bias"], **settings)

    laterals = [neck(f"lateral_convs.{i}", stages[i + 1]) for i in range(3)]
    for i in (1, 0):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], scale_factor=2, mode="nearest")
    expected = {f"p{i + 3}": neck(f"fpn_convs.{i}", laterals[i], padding=1) for i in range(3)}
    expected["p6"] = neck("fpn_convs.3", stages[3], stride=2, padding=1)
    config = CONFIGS / f"ga_retinanet_{backbone}_FPN_1x_release.yaml"
    model = built(config, ["MODEL.RESNETS.STRIDE_IN_1X1", str(style == "caffe")])
    filled(model, convert(state).state)
    features = model.backbone(image)
    for level, value in expected.items():
        scale = value.abs().max()
        torch.testing.assert_close(features[level] / scale, value / scale, rtol=1e-4, atol=1e-5, msg=level)


def test_complement_negates_the_location_branch():
    for family in ("GA-RPN", "GA-RetinaNet"):
        state = mmdetection_state(family)
        plain, negated = convert(state).state, convert(state, complement=True).state
        assert sum(".location." in name for name in plain) == 2
        for name, value in plain.items():
            assert torch.equal(negated[name], -value if ".location." in name else value), name


@pytest.mark.parametrize("bias, complement, note", [
    (0.9, False, "--complement negates it"), (0.9, True, None), (-2.0, False, None),
    (-2.0, True, "leave --complement out"),
])  # fmt: skip
def test_what_the_location_branch_probably_learned(bias, complement, note):
    state = mmdetection_state("GA-RPN") | {"rpn_head.conv_loc.bias": torch.tensor([bias])}
    notes = convert(state, complement).notes
    assert [note in text for text in notes] == ([True] if note else [])


def test_mmdetection_1_has_the_background_first():
    """81 classes of which 0 is the background, and deltas for it; a box head without roi_head before its name."""
    state = {name.removeprefix("roi_head."): value for name, value in mmdetection_state().items()}
    order = [80, *range(80)]
    for name in ("weight", "bias"):
        new = state[f"bbox_head.fc_cls.{name}"]
        state[f"bbox_head.fc_cls.{name}"] = new[order]
        deltas = state[f"bbox_head.fc_reg.{name}"]
        state[f"bbox_head.fc_reg.{name}"] = torch.cat([torch.zeros_like(deltas[:4]), deltas])
    older = convert(state)
    newer = {name: value for name, value in state.items() if not name.startswith("bbox_head.")}
    for name in ("weight", "bias"):
        classes, deltas = state[f"bbox_head.fc_cls.{name}"], state[f"bbox_head.fc_reg.{name}"]
        newer[f"roi_head.bbox_head.fc_cls.{name}"] = torch.cat([classes[1:], classes[:1]])
        newer[f"roi_head.bbox_head.fc_reg.{name}"] = deltas[4:]
        for i in (0, 1):
            newer[f"roi_head.bbox_head.shared_fcs.{i}.{name}"] = state[f"bbox_head.shared_fcs.{i}.{name}"]
    newer = convert(newer)
    assert "of MMDetection 1" in older.notes[0]
    assert not any("MMDetection 1" in note for note in newer.notes)
    assert older.state.keys() == newer.state.keys()
    for name, value in newer.state.items():
        assert torch.equal(older.state[name], value), name


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def history_buffer(monkeypatch):
    """mmengine's class as a checkpoint holds it, importable only while it is written."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.zeros(3), np.zeros(3)
            self._statistics_methods = {"mean": len}

        def __setstate__(self, state):
            raise AssertionError("it was run")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], "HistoryBuffer"
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    return HistoryBuffer


class Mapping(dict):
    """A configuration's class, pickled by its items."""


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Deep(Evil):
    """The same by a function that is found through an allowed one, and called twice over."""

    def __reduce__(self):
        return getattr, (Evil(self.path), "__class__"), {"x": Evil(self.path)}, iter([1]), iter([("a", 2)])


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_mmengine_and_of_former_torch(zipped, history_buffer, tmp_path):
    state = mmdetection_state("GA-RPN")
    content = {
        "meta": Mapping(epoch=12, cfg="x = 1"),
        "state_dict": state
        | {"data_preprocessor.mean": torch.zeros(3, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1)},
        "message_hub": {"log_scalars": {"train/loss": history_buffer()}},
        "optimizer": {"state": {0: np.float64(1)}, "generator": np.random.default_rng(0)},
    }
    torch.save(content, tmp_path / "epoch_12.pth", _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    converted = convert_checkpoint(str(tmp_path / "epoch_12.pth"))
    assert converted.unknown == [] and converted.settings["MODEL.PIXEL_STD"] == [1.0, 1.0, 1.0]
    assert not any(name.startswith("mmengine") for name in sys.modules)
    for name, value in convert(state).state.items():
        assert torch.equal(converted.state[name], value), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [Evil, Deep])
def test_nothing_of_a_file_is_run(kind, zipped, tmp_path):
    ran = tmp_path / "ran"
    state = mmdetection_state("GA-RPN")
    content = {"meta": kind(ran), "state_dict": state, "hooks": [kind(ran)]}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    assert convert_checkpoint(str(tmp_path / "evil.pth")).state.keys() == convert(state).state.keys()
    assert not ran.exists()
    with contextlib.suppress(AttributeError):  # in Deep's list, which is none
        pickle.loads(pickle.dumps(kind(ran)))  # elsewhere it is run
    assert ran.exists()


def test_nothing_in_the_weights_themselves_is_run(tmp_path):
    ran = tmp_path / "ran"
    state = mmdetection_state("GA-RPN") | {"rpn_head.conv_loc.bias": Evil(ran)}
    torch.save({"state_dict": state}, tmp_path / "evil.pth")
    with pytest.raises(ConversionError, match=r"evil.pth: rpn_head.conv_loc.bias: expected a tensor, got"):
        convert_checkpoint(str(tmp_path / "evil.pth"))
    assert not ran.exists()


def test_pickles_that_are_no_checkpoint_are_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(ConversionError, match="evil.pth: not a checkpoint that can be read"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not ran.exists()


def files():
    def program(path):
        torch.jit.script(torch.nn.ReLU()).save(str(path))

    def cut(path):
        torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])

    def saved(content):
        return lambda path: torch.save(content, path)

    zero = torch.zeros(1)
    return [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("no checkpoint"), "not a checkpoint that can be read"),
        (lambda path: path.write_bytes(b""), "not a checkpoint that can be read"),
        (cut, "not a checkpoint that can be read"),
        (program, "expected a checkpoint, got a TorchScript program"),
        (saved([1]), "expected a mapping with state_dict, got list"),
        (saved({"state_dict": 3}), "state_dict: expected names and tensors, got int"),
        (saved({}), "expected the parameters of a GA-RPN .*, got nothing"),
        (saved({"state_dict": {"backbone.conv1.weight": zero}}), "expected the parameters of a GA-RPN"),
        (saved({"state_dict": {"rpn_head.rpn_cls.weight": zero}}), "got those of an RPN"),
        (saved({"state_dict": {"bbox_head.retina_cls.weight": zero}}), "got a RetinaNet of fixed anchors"),
        (saved({"state_dict": {"rpn_head.feature_adaption.x": zero, "mask_head.y": zero, "mask_head.z": zero}}),
         "mask_head.y and 1 more: no parameter of a GA-RPN"),
        (saved({"state_dict": {"rpn_head.feature_adaption.x": 3}}),
         "rpn_head.feature_adaption.x: expected a tensor, got int"),
    ]  # fmt: skip


@pytest.mark.parametrize("make, message", files())
def test_other_files_are_refused_in_one_line(make, message, tmp_path):
    path = tmp_path / "theirs.pth"
    make(path)
    with pytest.raises(ConversionError, match=rf"theirs\.pth: (.*, )?{message}|^{message}") as error:
        main([str(path), str(tmp_path / "ours.pth")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours.pth").exists()


# ---- comparing with a configuration ---------------------------------------------------------------------------------

CONFIG_TEXT = """
norm = dict(type='BN', requires_grad=False)
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(
    type='FasterRCNN',
    backbone=dict(type='ResNet', depth=50, norm_cfg=norm, style='caffe'),
    rpn_head=dict(
        type='GARPNHead',
        approx_anchor_generator=dict(octave_base_scale=8, ratios=(0.5, 1.0, 2.0)),
        anchor_coder=dict(target_means=[.0, .0, .0, .0], target_stds=[0.07, 0.07, 0.14, 0.14]),
        bbox_coder=dict(target_stds=[0.07, 0.07, 0.11, 0.11]),
        loc_filter_thr=0.02),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1]))))
work_dir = __import__('os').system('touch {ran}')
"""


def test_settings_of_the_configuration_in_the_file(tmp_path):
    """They are read, not run; those that agree are passed over, those that differ are listed."""
    ran = tmp_path / "ran"
    meta = {"config": CONFIG_TEXT.format(ran=ran)}
    source = written(tmp_path / "theirs.pth", {"meta": meta, "state_dict": mmdetection_state()})
    converted = convert_checkpoint(source)
    assert not ran.exists()
    assert converted.settings.keys() == {
        "MODEL.RESNETS.DEPTH", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP",
        "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT",
        "MODEL.GUIDED_ANCHORING.SIGMA", "MODEL.GUIDED_ANCHORING.SHAPE_STD", "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD",
        "MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    }  # fmt: skip
    cfg, model = compared_with([])
    assert compare(converted, model, cfg).settings == [
        "MODEL.PIXEL_MEAN: [102.98, 115.947, 122.772] in the checkpoint, "
        "[103.53, 116.28, 123.675] in the configuration",
        "MODEL.GUIDED_ANCHORING.LOCATION.THRESHOLD: 0.02 in the checkpoint, 0.01 in the configuration",
    ]
    cfg, model = compared_with(["MODEL.RESNETS.STRIDE_IN_1X1", "False", "INPUT.FORMAT", "RGB"])
    assert [line.split(":")[0] for line in compare(converted, model, cfg).settings[:2]] == [
        "MODEL.RESNETS.STRIDE_IN_1X1",
        "MODEL.PIXEL_MEAN",
    ]
    assert "INPUT.FORMAT: BGR in the checkpoint, RGB in the configuration" in compare(converted, model, cfg).settings


def test_the_command_says_what_differs(tmp_path, capsys):
    state = mmdetection_state()
    del state["rpn_head.conv_shape.bias"]
    state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(21, 1024)
    state["mask_head.conv.weight"] = torch.zeros(1)
    source = written(tmp_path / "theirs.pth", {"state_dict": state})
    assert main([source, "--config-file", CONFIG]) == 1
    printed = capsys.readouterr().out
    assert "missing: 1\n  proposal_generator.rpn.head.shape.bias" in printed
    assert "unexpected: 1\n  mask_head.conv.weight" in printed
    assert "cls_score.weight: (21, 1024) in the checkpoint, (81, 1024) in the model" in printed
    assert "set otherwise: 0" in printed


def test_errors_of_the_command(tmp_path):
    source = written(tmp_path / "theirs.pth", {"state_dict": mmdetection_state("GA-RPN")})
    with pytest.raises(ConversionError, match="gone: no such folder"):
        main([source, str(tmp_path / "gone" / "x.pth")])
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        main([source, "--config-file", str(tmp_path / "gone.yaml")])
    with pytest.raises(SystemExit):
        main([source])
    command = [sys.executable, str(ROOT / "tools" / "convert_mmdetection.py"), str(tmp_path / "gone.pth"), "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stderr == f"ConversionError: {tmp_path / 'gone.pth'}: no such file\n"


# ---- what the models compute ----------------------------------------------------------------------------------------


def reference(state, x, stride):
    """Location probabilities (H W), boxes (H W, 4) and scores (H W) of a level of the release's GA-RPN."""

    def layer(name, x, **settings):
        return F.conv2d(x, state[f"rpn_head.{name}.weight"], state[f"rpn_head.{name}.bias"], **settings)

    x = layer("rpn_conv", x, padding=1).relu()
    shape = layer("conv_shape", x)
    offset = F.conv2d(shape, state["rpn_head.feature_adaption.conv_offset.weight"])
    weight = state["rpn_head.feature_adaption.conv_adaption.weight"]
    adapted = torchvision.ops.deform_conv2d(x, offset, weight, padding=1).relu()
    delta = layer("conv_reg", adapted)[0].flatten(1) * torch.tensor([0.07, 0.07, 0.11, 0.11])[:, None]
    width, height = 8 * stride * torch.exp(0.14 * shape[0].flatten(1))
    boxes = decoded(x.shape, stride, width, height, delta)
    return layer("conv_loc", x).flatten().sigmoid(), boxes, layer("conv_cls", adapted).flatten()


def decoded(shape, stride, width, height, delta, first=0):
    """Boxes (H W, 4) of anchors at the cells' corners; ``first`` cells stand before them in either direction."""
    y, x = torch.meshgrid(first + torch.arange(shape[2]), first + torch.arange(shape[3]), indexing="ij")
    center_x, center_y = x.flatten() * stride + delta[0] * width, y.flatten() * stride + delta[1] * height
    half_x, half_y = 0.5 * width * delta[2].exp(), 0.5 * height * delta[3].exp()
    return torch.stack([center_x - half_x, center_y - half_y, center_x + half_x, center_y + half_y], 1)


@torch.no_grad()
def test_proposals_are_those_of_the_release():
    state = mmdetection_state("GA-RPN")
    model = built(CONFIG)
    rpn = model.proposal_generator.rpn
    prefix = "proposal_generator.rpn."
    ours = {k.removeprefix(prefix): v for k, v in convert(state).state.items() if k.startswith(prefix)}
    rpn.load_state_dict(ours)
    features = [torch.randn(1, 256, 20 // 2**i, 24 // 2**i) for i in range(3)]
    rpn.strides, rpn.nms_thresh = (4, 8, 16), 1.0
    size = (10_000, 10_000)  # nothing is clipped at these sides
    ((proposals, _),) = rpn(features, [size]).proposals.unpad()
    found = [reference(state, x, stride) for x, stride in zip(features, rpn.strides)]
    probability, boxes, scores = (torch.cat(parts) for parts in zip(*found))
    active = probability >= 0.01
    assert 0.3 < active.float().mean() <= 1
    order = scores[active].argsort(descending=True)[:300]
    expected = boxes[active][order].clamp(min=0)
    kept = (expected[:, 2:] > expected[:, :2]).all(1)
    torch.testing.assert_close(proposals, expected[kept][: len(proposals)], rtol=1e-4, atol=1e-3)


FAR = 40  # cells from the border of the image, where MMDetection clips before its NMS and this project after it


def retina_reference(state, x, stride):
    """Location probabilities (H W), boxes (H W, 4), class probabilities (H W, classes) of a level of GA-RetinaNet.

    Location from the classification tower, shape from the regression tower, two adaptions by the raw shape, 3x3
    predictions; sides 4 s e^(dw) at (j s, i s), deltas of standard deviation 1.
    """

    def layer(name, x, **settings):
        return F.conv2d(x, state[f"bbox_head.{name}.weight"], state[f"bbox_head.{name}.bias"], **settings)

    def adapt(name, x, shape):
        offset = F.conv2d(shape, state[f"bbox_head.feature_adaption_{name}.conv_offset.weight"])
        weight = state[f"bbox_head.feature_adaption_{name}.conv_adaption.weight"]
        return torchvision.ops.deform_conv2d(x, offset, weight, padding=1).relu()

    classification = regression = x
    for i in range(4):
        classification = layer(f"cls_convs.{i}.conv", classification, padding=1).relu()
        regression = layer(f"reg_convs.{i}.conv", regression, padding=1).relu()
    location, shape = layer("conv_loc", classification), layer("conv_shape", regression)
    scores = layer("retina_cls", adapt("cls", classification, shape), padding=1)[0].flatten(1).T.sigmoid()
    delta = layer("retina_reg", adapt("reg", regression, shape), padding=1)[0].flatten(1)
    width, height = 4 * stride * shape[0].flatten(1).exp()
    return location.flatten().sigmoid(), decoded(x.shape, stride, width, height, delta, FAR), scores


def suppressed(boxes, scores, classes, threshold=0.5, most=100):
    """Indices of the best boxes, each with an IoU of at most ``threshold`` with every better one of its class."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        same = [k for k in kept if classes[k] == classes[i]]
        if not same or torchvision.ops.box_iou(boxes[i : i + 1], boxes[same]).max() <= threshold:
            kept.append(i)
        if len(kept) == most:
            break
    return kept


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_detections_are_those_of_the_releases_retinanet(seed):
    """Two images of three levels, 8 classes: boxes to 1e-3 px, scores to 1e-5, the same classes."""
    torch.manual_seed(seed)
    state = retina_head(classes=8)
    for name, scale in (("retina_cls", 8), ("retina_reg", 4), ("conv_loc", 20)):
        state[f"bbox_head.{name}.weight"] *= scale
    strides, size = (8, 16, 32), (10_000, 10_000)
    features = [torch.randn(2, 256, 20 // 2**i, 28 // 2**i) for i in range(3)]
    # Biases with which half of the cells are active and some of the scores pass.
    found = [retina_reference(state, x, stride) for x, stride in zip([f[:1] for f in features], strides)]
    for name, part, share, probability in (("conv_loc", 0, 0.5, 0.01), ("retina_cls", 2, 0.85, 0.05)):
        level = torch.cat([of_level[part].flatten() for of_level in found]).logit().quantile(share)
        state[f"bbox_head.{name}.bias"] += torch.tensor(probability).logit() - level
    config = str(CONFIGS / "ga_retinanet_R_50_FPN_1x_release.yaml")
    cfg = BUILTIN.setup(config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RETINANET.NUM_CLASSES", "8"])
    detector = build_guided_anchor_retinanet(cfg, 256, strides).eval()
    detector.load_state_dict({k.removeprefix("detector."): v for k, v in convert(state).state.items()})
    assert detector.cell_offset == 0
    detector.cell_offset = FAR
    detections = detector(features, [size, size]).detections
    for image, (found_boxes, found_scores, found_classes, _) in enumerate(detections.unpad()):
        levels = [retina_reference(state, x[image : image + 1], stride) for x, stride in zip(features, strides)]
        probability, boxes, scores = (torch.cat(parts) for parts in zip(*levels))
        active = probability >= 0.01
        assert 0.1 < active.float().mean() < 0.9
        rows, classes = ((scores > 0.05) & active[:, None]).nonzero(as_tuple=True)
        assert 200 < len(rows) < 1000  # below the limit of candidates
        boxes, scores = boxes[rows], scores[rows, classes]
        assert 0 < boxes.min() and boxes.max() < size[0]
        kept = suppressed(boxes, scores, classes)
        assert len(kept) == 100 < len(rows)
        assert len(found_boxes) == len(kept)
        torch.testing.assert_close(found_scores, scores[kept], rtol=0, atol=1e-5)
        # Scores that are equal but for rounding may stand in another order.
        same = (found_scores[:, None] - scores[kept]).abs() < 1e-5
        same &= found_classes[:, None] == classes[kept]
        same &= (found_boxes[:, None] - boxes[kept]).abs().amax(2) < 1e-3
        assert same.any(0).all() and same.any(1).all()
