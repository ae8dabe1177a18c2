"""ScopeNet's pictures: files that are images, and the numbers that are drawn in them."""

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from ga_scope import Detector
from ga_scope.modeling.results import ImageResult
from ga_scope.visualization.scope import learned_distances, rank_correlation, true_ious
from tests.engines.conftest import config, overrides, random_weights, shapes, tool  # noqa: F401


def options(shapes, tmp_path, **more):  # noqa: F811
    opts = overrides(shapes, tmp_path, **{"MODEL.SCOPENET.PRIOR_PROB": 0.3}, **more)
    return random_weights("scopenet", opts, tmp_path)


@pytest.mark.parametrize("bins", [5, 1])
@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_the_tool_writes_pictures(bins, engine, shapes, tmp_path, capsys):  # noqa: F811
    """Of a dataset also its anchors and scores, of all images and not of those alone that are drawn."""
    opts = options(shapes, tmp_path, **{"MODEL.SCOPENET.BINS.NUM": bins})
    flags = ["--config-file", config("scopenet"), "--engine", engine, "--dataset", f"val_{shapes.parent.name}"]
    tool("visualize").main([*flags, "--limit", "2", "--output", str(tmp_path / "out"), *opts])
    printed = capsys.readouterr().out
    assert "rank correlation with the true IoU: p_cls " in printed and "2 pictures in " in printed
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["000000.jpg.png", "000001.jpg.png", "anchors.png", "scores.png"]
    for name in written:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 300 and len(image.getcolors(1 << 24)) > 20


def test_of_a_photo_there_is_no_truth(shapes, tmp_path):  # noqa: F811
    """Bins alone, and no dataset anywhere."""
    opts = options(shapes, tmp_path)
    flags = [str(shapes / "val" / "000000.jpg"), "--config-file", config("scopenet"), "--engine", "torchvision"]
    tool("predict").main([*flags, "--maps", "--output", str(tmp_path / "out"), *opts])
    assert [p.name for p in (tmp_path / "out" / "pictures").iterdir()] == ["000000.jpg.png"]


@pytest.mark.parametrize("bins", [5, 1])
def test_scopes_are_the_models_detections(bins, shapes, tmp_path):  # noqa: F811
    """In pixels of the file, best first; the score is p_cls p_loc; the box decodes from its location and bins."""
    sizes = {"INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 160, "MODEL.SCOPENET.BINS.NUM": bins}
    detector = Detector(config("scopenet"), overrides=options(shapes, tmp_path, **sizes), engine="torchvision")
    file = next((shapes / "val").glob("*.jpg"))
    found, plain = detector(file, maps=True), detector(file)
    scopes = found.scopes
    assert len(found.boxes) > 5 and plain.scopes is None
    assert torch.equal(found.boxes, plain.boxes) and torch.equal(found.scores, plain.scores)
    torch.testing.assert_close(found.scores, scopes.class_scores * scopes.localization_scores)
    expected = scopes.probabilities.amax(-1).mean(-1) if bins > 1 else torch.ones(len(found.boxes))
    torch.testing.assert_close(scopes.localization_scores, expected)
    inside = (scopes.points >= found.boxes[:, :2]) & (scopes.points <= found.boxes[:, 2:])
    assert inside.all()
    # Points of the network's grid of 160 px in a file of 128: (k + 1/2) strides.
    cells = scopes.points / scopes.strides[:, None] - 0.5
    torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-4)
    assert set((scopes.strides / 0.8).round(decimals=3).tolist()) <= {8, 16, 32, 64, 128}


def test_pictures_say_the_distances_and_scores(shapes, tmp_path, monkeypatch):  # noqa: F811
    """Titles of the sides' plots: the distances of the box from its point, in strides; its scores beside them."""
    from ga_scope.visualization.scope import draw_scopes

    detector = Detector(config("scopenet"), overrides=options(shapes, tmp_path), engine="torchvision")
    found = detector(next((shapes / "val").glob("*.jpg")), maps=True)
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    bins, threshold = detector.model.detector.head.bins, float(found.scores[1])
    draw_scopes(tmp_path / "x.png", found.image, found, bins, None, [*"abcde"], threshold)
    axes = kept[0].axes
    count = int((found.scores >= threshold).sum())
    assert axes[0].get_title() == f"{count} detections (score ≥ {threshold}); dashed: objects"
    x, y = found.scopes.points[0].tolist()
    x1, y1, x2, y2 = found.boxes[0].tolist()
    stride = float(found.scopes.strides[0])
    for axis, side, distance in zip(axes[1:5], ("left", "top", "right", "bottom"), (x - x1, y - y1, x2 - x, y2 - y)):
        assert axis.get_title() == f"{side}: {distance / stride:.2f} strides"
        assert [bar.get_height() for bar in axis.patches] == pytest.approx(
            found.scopes.probabilities[0, ("left", "top", "right", "bottom").index(side)].tolist()
        )
    scores = f"{found.scopes.class_scores[0]:.2f} · {found.scopes.localization_scores[0]:.2f}"
    assert axes[1].get_ylabel() == f"{'abcde'[int(found.classes[0])]}\n{scores}"
    monkeypatch.undo()
    plt.close("all")


def test_true_ious():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    found = true_ious(ImageResult(boxes), torch.tensor([[0.0, 0, 10, 5], [50, 50, 60, 60]]))
    assert found.tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert true_ious(ImageResult(boxes), torch.zeros(0, 4)).tolist() == [0, 0, 0]


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
