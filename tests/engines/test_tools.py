"""The tools that run a trained model, in both engines."""

import json
import subprocess
import sys

import pytest
import torch

from ga_scope.errors import ConfigError

from .conftest import ENGINES, ROOT, config, overrides, random_weights, tool


@pytest.fixture(scope="module")
def random_detector(shapes, tmp_path_factory):
    """Options of a GA-Faster R-CNN with random weights that are sure of nothing; its file says no class names."""
    folder = tmp_path_factory.mktemp("detector")
    return random_weights("ga_faster_rcnn", overrides(shapes, folder), folder)


def arguments(name, engine, *flags):
    return ["--config-file", config(name), "--engine", engine, *map(str, flags)]


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_of_guided_anchors(engine, shapes, random_rpn, tmp_path, capsys):
    flags = ["--dataset", f"val_{shapes.parent.name}", "--limit", 4, "--output", tmp_path / "new" / "e.json"]
    tool("explain").main([*arguments("ga_rpn", engine, *flags), *random_rpn])
    printed, content = capsys.readouterr().out, json.loads((tmp_path / "new" / "e.json").read_text())
    assert content["objects"] > 0 and f"{content['objects']} objects in 4 images" in printed
    assert "objects found at each stage" in printed and content["suggestions"][0] in printed
    # Every location is active here: what is reachable has its location.
    assert content["active_fraction_per_level"] == [1] * 5
    assert content["recall"]["reachable"] == content["recall"]["location"]
    assert "as found" not in content  # it knows no classes


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_of_a_detector(engine, shapes, random_detector, tmp_path, capsys):
    """One with a GA-RPN has both parts."""
    flags = ["--dataset", f"val_{shapes.parent.name}", "--limit", 4, "--output", tmp_path / "e.json"]
    tool("explain").main([*arguments("ga_faster_rcnn", engine, *flags), *random_detector])
    printed, content = capsys.readouterr().out, json.loads((tmp_path / "e.json").read_text())
    assert "as found" in printed and "wrong classes cost" in printed
    assert content["true boxes"]["AP"] >= content["as found"]["AP"] >= 0
    assert "objects found at each stage" in printed and content["objects"] > 0


def test_explain_of_a_detector_without_guided_anchors(shapes, tmp_path, capsys):
    opts = random_weights("scopenet", overrides(shapes, tmp_path), tmp_path)
    flags = ["--dataset", f"val_{shapes.parent.name}", "--limit", 2, "--output", tmp_path / "e.json"]
    tool("explain").main([*arguments("scopenet", "torchvision", *flags), *opts])
    assert "objects found at each stage" not in capsys.readouterr().out
    assert set(json.loads((tmp_path / "e.json").read_text())) == {"as found", "one class", "true classes", "true boxes"}


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_needs_guided_anchors_or_classes(engine, shapes, tmp_path):
    opts = random_weights("rpn", overrides(shapes, tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="PROPOSAL_GENERATOR.NAME: expected GuidedAnchoringRPN, or a detector"):
        tool("explain").main([*arguments("rpn", engine, "--dataset", f"val_{shapes.parent.name}"), *opts])


@pytest.mark.parametrize("engine", ENGINES)
def test_dumps_need_proposals(engine, shapes, tmp_path):
    opts = random_weights("scopenet", overrides(shapes, tmp_path), tmp_path)
    flags = ["--dataset", f"val_{shapes.parent.name}", "--output", tmp_path / "p.npz"]
    with pytest.raises(ConfigError, match="MODEL.META_ARCHITECTURE: expected a model that makes proposals"):
        tool("dump_proposals").main([*arguments("scopenet", engine, *flags), *opts])
    assert not (tmp_path / "p.npz").exists() and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("engine", ENGINES)
def test_visualize_a_dataset(engine, shapes, random_rpn, tmp_path, capsys):
    """All of its images, unless told otherwise."""
    flags = ["--dataset", f"val_{shapes.parent.name}", "--output", tmp_path / "pictures"]
    tool("visualize").main([*arguments("ga_rpn", engine, *flags), *random_rpn])
    assert "10 pictures in " in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 10


@pytest.mark.parametrize("engine", ENGINES)
def test_measure_speed(engine, random_rpn, tmp_path, capsys):
    output = tmp_path / "new" / "speed.json"
    tool("measure_speed").main([*arguments("ga_rpn", engine, "--limit", 5, "--output", output), *random_rpn])
    speed = json.loads(output.read_text())["images_per_second"]
    assert f"{speed:.1f} images / s" in capsys.readouterr().out and speed > 0


@pytest.mark.parametrize(
    "name, flags",
    [
        ("explain", ["--dataset", "nowhere"]),
        ("dump_proposals", ["--dataset", "nowhere", "--output", "p.npz"]),
        ("visualize", ["--dataset", "nowhere", "--output", "pictures"]),
    ],
)
def test_what_is_wrong_is_one_line_on_the_way_out(name, flags, random_rpn, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments("ga_rpn", "torchvision", *flags)]
    done = subprocess.run([*command, *random_rpn], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("DatasetError: DATASETS: no dataset 'nowhere'; known: ")
    assert "Traceback" not in done.stderr


def test_a_proposal_file_has_one_of_two_endings(shapes, random_rpn, tmp_path):
    from ga_scope.errors import DatasetError

    flags = ["--dataset", f"val_{shapes.parent.name}", "--output", tmp_path / "p.csv"]
    with pytest.raises(DatasetError, match="p.csv: expected a name that ends in .npz or .pkl"):
        tool("dump_proposals").main([*arguments("ga_rpn", "torchvision", *flags), *random_rpn])


def test_nothing_but_the_model_takes_time_in_a_dump(shapes, random_rpn, tmp_path, monkeypatch):
    """The head runs once for every image: one call of the model, none of its parts besides."""
    calls = []
    forward = torch.nn.Module.__call__

    def counted(self, *args, **kwargs):
        if type(self).__name__ == "GuidedAnchorRPN":
            calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    flags = ["--dataset", f"val_{shapes.parent.name}", "--output", tmp_path / "p.npz"]
    tool("dump_proposals").main([*arguments("ga_rpn", "torchvision", *flags), *random_rpn])
    assert len(calls) == 10
