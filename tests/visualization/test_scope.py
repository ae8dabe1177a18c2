"""ScopeNet's pictures: files that are images, and the numbers that are drawn in them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ga_scope.integrations.torchvision.checkpoint import to_detectron2
from ga_scope.integrations.torchvision.models import build_model
from ga_scope.integrations.torchvision.predictor import Predictor
from ga_scope.integrations.torchvision.run import setup
from ga_scope.visualization.scope import Scopes, ScopeTap, learned_distances, rank_correlation, true_ious
from tests.integrations.conftest import overrides, randomise, shapes  # noqa: F401

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "shapes" / "scopenet_R_18_FPN.yaml")


def options(shapes, tmp_path, **more):  # noqa: F811
    opts = overrides(shapes, tmp_path, **{"MODEL.SCOPENET.PRIOR_PROB": 0.3}, **more)
    torch.save({"model": to_detectron2(randomise(build_model(setup(CONFIG, opts))).state_dict())}, tmp_path / "m.pth")
    return [*opts, "MODEL.WEIGHTS", str(tmp_path / "m.pth")]


@pytest.mark.parametrize("bins", [5, 1])
def test_the_tool_writes_pictures(bins, shapes, tmp_path, monkeypatch, capsys):  # noqa: F811
    opts = options(shapes, tmp_path, **{"MODEL.SCOPENET.BINS.NUM": bins})
    spec = importlib.util.spec_from_file_location("visualize_scope", ROOT / "tools" / "visualize_scope.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    flags = ["--config-file", CONFIG, "--engine", "torchvision", "--input", f"val_{shapes.parent.name}", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["visualize_scope.py", *flags, "--output", str(tmp_path / "out"), *opts])
    tool.main()
    assert "rank correlation" in capsys.readouterr().out
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(written) == 4 and {"anchors.png", "scores.png"} < set(written)
    for name in written:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 300 and len(image.getcolors(1 << 24)) > 20


def test_scopes_are_the_models_detections(shapes, tmp_path):  # noqa: F811
    """In pixels of the file, best first; the score is p_cls p_loc; the box decodes from its location and bins."""
    opts = options(shapes, tmp_path, **{"INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 160})
    predictor = Predictor(setup(CONFIG, opts))
    tap = ScopeTap(predictor.model)
    file = next((shapes / "val").glob("*.jpg"))
    prediction = predictor({"file_name": str(file), "image_id": 1, "height": 128, "width": 128})
    scopes = tap.scopes(128, 128)
    assert len(scopes.boxes) > 5 and tap.image_size == (160, 160)
    torch.testing.assert_close(scopes.boxes, prediction.boxes)
    torch.testing.assert_close(scopes.scores, prediction.scores)
    torch.testing.assert_close(scopes.scores, scopes.class_scores * scopes.localization_scores)
    torch.testing.assert_close(scopes.localization_scores, scopes.probabilities.amax(-1).mean(-1))
    inside = ((scopes.points >= scopes.boxes[:, :2]) & (scopes.points <= scopes.boxes[:, 2:])).all(1)
    assert inside.all()


def test_scopes_need_a_scopenet():
    with pytest.raises(ValueError, match="model: expected a ScopeNet, got Linear with 0 scope detectors"):
        ScopeTap(torch.nn.Linear(1, 1))


def test_true_ious():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    scopes = Scopes(boxes, *[torch.zeros(3)] * 7)
    found = true_ious(scopes, torch.tensor([[0.0, 0, 10, 5], [50, 50, 60, 60]]))
    assert found.tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert true_ious(scopes, torch.zeros(0, 4)).tolist() == [0, 0, 0]


def test_rank_correlation():
    """Monotone is 1 whatever the shape. By hand: ranks (1, 2.5, 2.5, 4) and (1, 4, 2.5, 2.5)."""
    x = torch.rand(50)
    assert rank_correlation(x, x.exp()) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)
    tied = rank_correlation(torch.tensor([1.0, 2, 2, 4]), torch.tensor([1.0, 3, 2, 2]))
    assert tied == pytest.approx(2.25 / 4.5)


def test_learned_distances():
    """One box of 40 px about a cell of stride 8: all of its 4 x 4 locations within 2 strides lie inside it."""
    from tests.modeling.test_scope import make_detector

    found = learned_distances(make_detector(), [(64, 96)], [torch.tensor([[20.0, 12, 60, 52]])])
    assert len(found) == 16  # the box's centre is a corner of cells
    torch.testing.assert_close(found.sum(1), torch.full((16,), 10.0))  # 2 * 40 px / stride 8
