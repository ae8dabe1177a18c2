"""Files of detectron2's model zoo in the built-in engine."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ga_scope.checkpoint import CheckpointError
from ga_scope.integrations.torchvision import run as builtin
from ga_scope.integrations.torchvision import zoo
from ga_scope.integrations.torchvision.checkpoint import BuiltinCheckpointer, to_detectron2
from ga_scope.integrations.torchvision.models import build_model

from .conftest import randomise

CONFIG = str(Path(__file__).parents[2] / "configs" / "COCO-Detection" / "ga_rpn_R_50_FPN_1x.yaml")


def model():
    return build_model(builtin.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))


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
    state = {k: v for k, v in to_detectron2(randomise(model(), 3).state_dict()).items() if "bottom_up" in k}
    blobs = {caffe2_name(k): v.numpy() for k, v in state.items() if caffe2_name(k)}
    blobs |= {"fc1000_w": np.zeros((10, 5), np.float32), "conv1_w_momentum": np.zeros(3, np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    return path, {k: v for k, v in state.items() if caffe2_name(k)}


def test_caffe2_backbone(imagenet):
    path, expected = imagenet
    ours = model()
    BuiltinCheckpointer(ours).load(str(path), checkpointables=[])
    loaded = to_detectron2(ours.state_dict())
    assert len(expected) == 53 * 3
    for name, value in expected.items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.detectron2
def test_caffe2_backbone_as_detectron2_reads_it(imagenet):
    from detectron2.modeling import build_model as build_detectron2

    from ga_scope.integrations.detectron2 import run as d2
    from ga_scope.integrations.detectron2.engine import CheckedCheckpointer

    path, expected = imagenet
    theirs = build_detectron2(d2.setup(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))
    CheckedCheckpointer(theirs).load(str(path))
    state = theirs.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_detectron2_pickle(tmp_path):
    source = randomise(model(), 4)
    state = to_detectron2(source.state_dict())
    path = tmp_path / "model_final.pkl"
    contents = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(contents))
    ours = model()
    checkpointer = BuiltinCheckpointer(ours)
    checkpointer.strict = True
    checkpointer.load(str(path), checkpointables=[])
    assert all(torch.equal(v, state[k]) for k, v in to_detectron2(ours.state_dict()).items())


class Malicious:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_other_pickles_are_refused(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": Malicious(), "__author__": "?"}))
    with pytest.raises(CheckpointError, match="evil.pkl: .*expected arrays only, got builtins.print"):
        BuiltinCheckpointer(model()).load(str(path))
    assert capsys.readouterr().out == ""


def test_addresses(monkeypatch):
    """detectron2:// stands for the zoo's address."""
    asked = []
    monkeypatch.setattr(zoo.HTTPURLHandler, "_get_local_path", lambda self, path, *a, **k: asked.append(path) or "file")
    assert zoo.paths.get_local_path("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == "file"
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"]
