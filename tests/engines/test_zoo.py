"""Files of detectron2's model zoo, in both engines."""

import pickle

import numpy as np
import pytest
import torch

from ga_scope.engines import get_engine, weights
from ga_scope.engines.checkpoint import Checkpointer
from ga_scope.errors import CheckpointError

from .conftest import CONFIGS, ENGINES, randomise

CONFIG = str(CONFIGS / "COCO-Detection" / "ga_rpn_R_50_FPN_1x.yaml")


def model(name="torchvision"):
    """Of an engine; and what loads its weights."""
    engine = get_engine(name)
    cfg = engine.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    built = engine.build(cfg)
    return built, Checkpointer(cfg, built, engine.named_state)


def state_of(name, built):
    return get_engine(name).named_state(built)


def caffe2_name(name):
    """The other way round, by a table of its own: bottom_up.res2.0.conv1.norm.weight -> res2_0_branch2a_bn_s."""
    parts = name.removeprefix("backbone.bottom_up.").split(".")
    kind = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}.get(
        ".".join(parts[2 if parts[0] == "stem" else 3 :])
    )
    if kind is None:  # Caffe2's BatchNorm is folded: an affine layer without statistics
        return None
    if parts[0] == "stem":
        return f"conv1_{kind}" if kind == "w" else f"res_conv1_{kind}"
    branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[parts[2]]
    return f"{parts[0]}_{parts[1]}_branch{branch}_{kind}"


@pytest.fixture
def imagenet(tmp_path):
    """A backbone as MSRA's R-50.pkl has it, and what it holds under detectron2's names."""
    state = {k: v for k, v in state_of("torchvision", randomise(model()[0], 3)).items() if "bottom_up" in k}
    blobs = {caffe2_name(k): v.detach().numpy() for k, v in state.items() if caffe2_name(k)}
    blobs |= {"fc1000_w": np.zeros((10, 5), np.float32), "conv1_w_momentum": np.zeros(3, np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    return path, {k: v for k, v in state.items() if caffe2_name(k)}


@pytest.mark.parametrize("name", ENGINES)
def test_caffe2_backbone(name, imagenet):
    path, expected = imagenet
    ours, checkpointer = model(name)
    checkpointer.load(str(path), strict=False)
    loaded = state_of(name, ours)
    assert len(expected) == 53 * 3
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.detectron2
def test_caffe2_backbone_as_detectron2_reads_it(imagenet):
    """By its own checkpointer."""
    from detectron2.checkpoint import DetectionCheckpointer

    path, expected = imagenet
    (ours, checkpointer), (theirs, _) = model("detectron2"), model("detectron2")
    checkpointer.load(str(path), strict=False)
    DetectionCheckpointer(theirs).load(str(path))
    ours, theirs = (state_of("detectron2", m) for m in (ours, theirs))
    assert all(torch.equal(ours[key], theirs[key]) for key in expected)


@pytest.mark.parametrize("name", ENGINES)
def test_detectron2_pickle(name, tmp_path):
    state = state_of("torchvision", randomise(model()[0], 4))
    path = tmp_path / "model_final.pkl"
    contents = {"model": {k: v.detach().numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(contents))
    ours, checkpointer = model(name)
    checkpointer.load(str(path))  # every parameter, and no other
    loaded = state_of(name, ours)
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


class Malicious:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_files_that_run_code_are_refused(name, suffix, tmp_path, capsys):
    path, contents = tmp_path / f"evil.{suffix}", {"model": Malicious(), "__author__": "?"}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(contents))
        message = "evil.pkl: .*expected .*by their names, got print"
    else:
        torch.save(contents, path)
        message = "evil.pth: .*it holds more than tensors, which is not loaded for safety .*print"
    capsys.readouterr()
    with pytest.raises(CheckpointError, match=message):
        model(name)[1].load(str(path))
    assert "this must not run" not in capsys.readouterr().out


def test_addresses(monkeypatch):
    """detectron2:// stands for the zoo's address."""
    asked = []
    monkeypatch.setattr(
        weights.HTTPURLHandler, "_get_local_path", lambda self, path, *a, **k: asked.append(path) or "file"
    )
    assert weights.paths.get_local_path("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == "file"
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"]
