"""Figures 3 to 6: what they count, and that they are drawn."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ga_scope.ablation import figures
from ga_scope.data.dataset import dataset_of_records
from ga_scope.modeling.results import GuidedAnchors

TRUTH = [[10.0, 10.0, 30.0, 20.0], [40.0, 40.0, 20.0, 20.0]]  # x, y, width, height


@pytest.fixture
def dataset(tmp_path):
    """Two objects under a crowd, on each of two images."""
    records = []
    for i in range(2):
        Image.new("RGB", (96, 80), (90, 120, 150)).save(tmp_path / f"{i}.png")
        objects = [{"bbox": box, "category_id": 0} for box in TRUTH]
        crowd = {"bbox": [0.0, 0.0, 90.0, 70.0], "category_id": 0, "iscrowd": 1}
        file = {"file_name": str(tmp_path / f"{i}.png"), "image_id": i, "height": 80, "width": 96}
        records.append(file | {"annotations": [*objects, crowd]})
    return dataset_of_records("mine", records, ["thing"])


class Detector:
    """Proposals near the objects, anchors of two levels, of every image."""

    def stream(self, records, maps=False):
        boxes = torch.tensor([[10.0, 10.0, 40.0, 32.0], [44.0, 40.0, 60.0, 60.0], [70.0, 5.0, 90.0, 30.0]])
        probability = [torch.rand(20, 24), torch.rand(10, 12)]
        everywhere = torch.tensor([[0.0, 0, 10, 20]]).repeat(600, 1)
        guided = GuidedAnchors(
            probability=probability, strides=[4.0, 8.0], centers=torch.zeros(600, 2), everywhere=everywhere,
            active=torch.tensor([3, 500]), boxes=boxes[:2] + 1, scores=torch.tensor([0.9, 0.4]),
            levels=torch.tensor([0, 1]), regressed=boxes[:2],
        )  # fmt: skip
        for record in records:
            image = Image.open(record["file_name"])
            yield SimpleNamespace(proposals=boxes, guided=guided if maps else None, image=image)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, kept open to be looked at."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def test_overlaps_are_with_objects_and_not_with_crowds(dataset):
    truth = figures.truth_of(dataset, 0)
    assert truth.tolist() == [[10, 10, 40, 30], [40, 40, 60, 60]]
    (found, _) = Detector().stream(dataset)
    expected = torchvision.ops.box_iou(found.proposals, truth).max(1).values
    overlaps = figures.proposal_overlaps(Detector(), dataset)
    np.testing.assert_allclose(overlaps, torch.cat([expected, expected]), atol=1e-6)


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


def test_figure_4_shows_every_image(tmp_path, drawn, dataset):
    figures.draw_anchor_maps(tmp_path / "4.png", list(Detector().stream(dataset, maps=True)))
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_title()]
    assert (
        titles == ["2 active anchors, the 2 most probable", "location probability", "aspect ratio of the anchors"] * 2
    )
    assert (tmp_path / "4.png").exists()


def test_the_map_of_aspects_is_that_of_the_most_probable_level():
    """Level 0 of cells of 4 px has tall anchors (2:1), level 1 of 8 px wide ones (1:4), where it is more probable."""
    probability = [torch.full((4, 4), 0.5), torch.tensor([[0.9, 0.1], [0.1, 0.1]])]
    sides = torch.tensor([[4.0, 8.0]] * 16 + [[16.0, 4.0]] * 4)
    guided = SimpleNamespace(probability=probability, everywhere=torch.cat([torch.zeros(20, 2), sides], 1))
    found = figures.aspect_map(guided, 16, 16)
    expected = np.ones((16, 16))
    expected[:8, :8] = -2
    np.testing.assert_allclose(found, expected)


def test_figure_5_says_what_each_model_finds(tmp_path, drawn, dataset):
    results = {name: list(Detector().stream(dataset)) for name in ("RPN", "GA-RPN")}
    figures.draw_proposals(tmp_path / "5.png", results, [figures.truth_of(dataset, i) for i in range(2)])
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == ["RPN: 2 of 2, mean IoU 0.85"] * 2 + ["GA-RPN: 2 of 2, mean IoU 0.85"] * 2
    assert (tmp_path / "5.png").exists()


def test_figure_6_shows_all_sides(tmp_path, drawn, dataset):
    """Densities integrate to one, ticks reach the largest side, lines stand where the sliding window's anchors are."""
    sides = figures.anchor_statistics(Detector(), dataset)
    assert sides["objects"].tolist() == [[30, 20], [20, 20]] * 2 and len(sides["guided anchors"]) == 4
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
