"""The tools that run a trained model: explain.py and measure_speed.py, in both engines."""

import json

import pytest
import torch

from ga_scope.config import ConfigError
from ga_scope.integrations.torchvision.checkpoint import to_detectron2
from ga_scope.integrations.torchvision.models import build_model
from ga_scope.integrations.torchvision.run import setup

from .conftest import config, overrides, tool

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(scope="module")
def random_detector(shapes, tmp_path_factory):
    """Options of a GA-Faster R-CNN with the weights that it is born with."""
    folder = tmp_path_factory.mktemp("detector")
    opts = overrides(shapes, folder)
    model = build_model(setup(config("ga_faster_rcnn"), opts))
    torch.save({"model": to_detectron2(model.state_dict())}, folder / "model.pth")
    return [*opts, "MODEL.WEIGHTS", str(folder / "model.pth")]


@pytest.mark.parametrize("engine", ENGINES)
def test_explain(engine, shapes, random_rpn, tmp_path, capsys):
    arguments = ["--config-file", config("ga_rpn"), "--engine", engine, "--dataset", f"val_{shapes.parent.name}"]
    tool("explain").main([*arguments, "--limit", "4", "--output", str(tmp_path / "e.json"), *random_rpn])
    printed, content = capsys.readouterr().out, json.loads((tmp_path / "e.json").read_text())
    assert content["objects"] > 0 and f"{content['objects']} objects in 4 images" in printed
    assert "objects found at each stage" in printed and content["suggestions"][0] in printed
    # Every location is active here: what is reachable has its location.
    assert content["active_fraction_per_level"] == [1] * 5
    assert content["recall"]["reachable"] == content["recall"]["location"]


def test_explain_needs_guided_anchors(shapes, tmp_path):
    class Predictor:
        model, tap = build_model(setup(config("rpn"), overrides(shapes, tmp_path))), None

    with pytest.raises(ConfigError, match="PROPOSAL_GENERATOR.NAME: expected GuidedAnchoringRPN"):
        tool("explain").diagnose(Predictor, [])


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_detections(engine, shapes, random_detector, tmp_path, capsys):
    arguments = ["--config-file", config("ga_faster_rcnn"), "--engine", engine]
    arguments += ["--dataset", f"val_{shapes.parent.name}", "--limit", "4", "--output", str(tmp_path / "e.json")]
    tool("explain_detections").main([*arguments, *random_detector])
    printed, content = capsys.readouterr().out, json.loads((tmp_path / "e.json").read_text())
    assert "as found" in printed and "wrong classes cost" in printed
    assert content["true boxes"]["AP"] >= content["as found"]["AP"] >= 0


def test_explain_detections_needs_a_detector(random_rpn):
    with pytest.raises(ConfigError, match="META_ARCHITECTURE: expected a detector .*, got ProposalNetwork"):
        arguments = ["--config-file", config("ga_rpn"), "--engine", "torchvision", "--dataset", "any"]
        tool("explain_detections").main([*arguments, *random_rpn])


@pytest.mark.parametrize("engine", ENGINES)
def test_visualize_photos_without_the_dataset(engine, shapes, random_detector, tmp_path, monkeypatch, capsys):
    """A folder of images and a checkpoint are enough. Classes are numbers then: their names are in the annotations."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    arguments = ["--config-file", config("ga_faster_rcnn"), "--engine", engine, "--input", str(shapes / "val")]
    arguments += ["--output", str(tmp_path / "pictures"), "--limit", "2", *random_detector]
    arguments += ["DATASETS.TEST", "('coco_2017_val',)"]
    monkeypatch.setattr("sys.argv", ["visualize.py", *arguments])
    tool("visualize").main()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert "classes by number" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ENGINES)
def test_measure_speed(engine, random_rpn, tmp_path, monkeypatch, capsys):
    output = tmp_path / "speed.json"
    arguments = ["--config-file", config("ga_rpn"), "--engine", engine, "--limit", "5", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["measure_speed.py", *arguments, *random_rpn])
    tool("measure_speed").main()
    speed = json.loads(output.read_text())["images_per_second"]
    assert f"{speed:.1f} images / s" in capsys.readouterr().out and speed > 0
