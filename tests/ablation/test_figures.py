"""Figures 3 to 6: what they count, and that they are drawn."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ga_scope.ablation import figures
from ga_scope.prediction import GuidedAnchors

TRUTH = [[10.0, 10.0, 30.0, 20.0], [40.0, 40.0, 20.0, 20.0]]  # x, y, width, height


@pytest.fixture
def record(tmp_path):
    Image.new("RGB", (96, 80), (90, 120, 150)).save(tmp_path / "a.png")
    crowd = {"bbox": [0.0, 0.0, 90.0, 70.0], "iscrowd": 1}
    objects = [{"bbox": box, "iscrowd": 0} for box in TRUTH]
    return {"file_name": str(tmp_path / "a.png"), "annotations": [*objects, crowd]}


def predictor(record):
    """Proposals near the objects, anchors of two levels."""
    boxes = torch.tensor([[10.0, 10.0, 40.0, 32.0], [44.0, 40.0, 60.0, 60.0], [70.0, 5.0, 90.0, 30.0]])
    maps = [torch.rand(20, 24), torch.rand(10, 12)]
    anchors = GuidedAnchors(maps, [4.0, 8.0], boxes[:2] + 1, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]))
    return SimpleNamespace(proposals=boxes, anchors=anchors)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, kept open to be looked at."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def test_overlaps_are_with_objects_and_not_with_crowds(record):
    truth = figures.truth_of(record)
    assert truth.tolist() == [[10, 10, 40, 30], [40, 40, 60, 60]]
    expected = torchvision.ops.box_iou(predictor(record).proposals, truth).max(1).values
    np.testing.assert_allclose(figures.proposal_overlaps(predictor, [record]), expected, atol=1e-6)


def test_figure_3_counts_proposals_per_image(tmp_path, drawn):
    overlaps = {"RPN": np.array([0.1, 0.5, 0.6, 0.65]), "GA-RPN": np.array([0.7, 0.95])}
    figures.draw_overlaps(tmp_path / "3.png", overlaps, images=2)
    (axis,) = drawn[0].axes
    rpn, guided = ({round(x, 3): y for x, y in line.get_xydata()} for line in axis.lines)
    assert rpn[0.5] == 1.5 and rpn[0.62] == 0.5 and 0.7 not in rpn
    assert guided[0.5] == 1 and guided[0.9] == 0.5
    assert [t.get_text() for t in axis.get_legend().texts] == [
        "RPN (2 proposals per image)", "GA-RPN (1 proposals per image)",
    ]  # fmt: skip
    assert Image.open(tmp_path / "3.png").width > 600


def test_figure_5_says_what_each_model_finds(tmp_path, drawn, record):
    figures.draw_proposals(tmp_path / "5.png", {"RPN": predictor, "GA-RPN": lambda r: predictor(r)}, [record, record])
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == ["RPN: 2 of 2, mean IoU 0.85"] * 2 + ["GA-RPN: 2 of 2, mean IoU 0.85"] * 2
    assert (tmp_path / "5.png").exists()


def test_figure_6_shows_all_sides(tmp_path, drawn, record):
    """Densities integrate to one, ticks reach the largest side, lines stand where the sliding window's anchors are."""
    sides = figures.anchor_statistics(predictor, [record])
    assert sides["objects"].tolist() == [[30, 20], [20, 20]] and len(sides["guided anchors"]) == 2
    sliding = np.array([[16.0, 16.0], [32.0, 128.0]])
    figures.draw_distributions(tmp_path / "6.png", sides, sliding)
    scale, ratio = drawn[0].axes
    assert scale.get_xlim() == (3, 6)
    assert sorted({line.get_xdata()[0] for line in scale.lines}) == [4, 6]
    assert sorted({line.get_xdata()[0] for line in ratio.lines}) == [0, 2]
    for axis in (scale, ratio):
        for outline in axis.patches:
            heights, edges, _ = outline.get_data()
            assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    assert (tmp_path / "6.png").exists()
