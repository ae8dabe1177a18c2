"""Pictures of many images: one for each, of what a model says of it."""

import os

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ga_scope import Detector
from ga_scope.data import image_record
from ga_scope.data.dataset import dataset_of_records
from ga_scope.modeling.results import GuidedAnchors, ImageResult
from ga_scope.visualization.boxes import colour_of, draw_detections
from ga_scope.visualization.gallery import draw_gallery, picture_names
from ga_scope.visualization.panels import draw_panels, probability_map
from tests.engines.conftest import config, random_rpn, shapes  # noqa: F401

# ---- case_08: one file for each ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, names",
    [
        (["a/1.jpg", "a/1.png", "a/2.jpg"], ["1.jpg.png", "1.png.png", "2.jpg.png"]),
        (["cam_a/0001.png", "cam_b/0001.png"], ["cam_a__0001.png.png", "cam_b__0001.png.png"]),
        (["x/a/b/1.png", "x/c/1.png", "x/1.png"], ["a__b__1.png.png", "c__1.png.png", "1.png.png"]),
        (["/data/a/1.png", "/other/a/1.png"], ["data__a__1.png.png", "other__a__1.png.png"]),
        (["a/b__1.png", "a/b/1.png"], ["b__1.png.png", "b__1.png.2.png"]),
        (["1.png", "1.png", "1.png"], ["1.png.png", "1.png.2.png", "1.png.3.png"]),
        ([], []),
    ],
)
def test_no_two_pictures_have_one_name(files, names):
    assert picture_names(files) == names
    assert not any(os.sep in name for name in names)


def test_pictures_of_equal_stems_lie_side_by_side(tmp_path, random_rpn):  # noqa: F811
    """A folder with 1.jpg and 1.png, and a dataset with the same name in two folders."""
    for name in ("p/1.jpg", "p/1.png", "p/2.jpg", "cam_a/0001.png", "cam_b/0001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    detector = Detector(config("ga_rpn"), overrides=random_rpn, engine="torchvision")
    records = [image_record(tmp_path / "p" / name) for name in ("1.jpg", "1.png", "2.jpg")]
    assert draw_gallery(tmp_path / "out", detector, records, None, 0.5) == [f"3 pictures in {tmp_path / 'out'}"]
    assert sorted(os.listdir(tmp_path / "out")) == ["1.jpg.png", "1.png.png", "2.jpg.png"]
    files = [str(tmp_path / f"cam_{c}" / "0001.png") for c in "ab"]
    records = [{"file_name": f, "image_id": i, "height": 48, "width": 64} for i, f in enumerate(files)]
    draw_gallery(tmp_path / "cams", detector, dataset_of_records("cams", records, ["thing"]), None, 0.5)
    assert sorted(os.listdir(tmp_path / "cams")) == ["cam_a__0001.png.png", "cam_b__0001.png.png"]


# ---- one picture ---------------------------------------------------------------------------------------


def result(**more):
    boxes = torch.tensor([[10.0, 20, 60, 50], [70, 10, 110, 70]])
    return ImageResult(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]), **more)


def test_detections_are_drawn_on_a_copy():
    """Outlines in the class's colour, of those that are sure enough; the image itself stays as it is."""
    image = Image.new("RGB", (120, 80), (128, 128, 128))
    both, sure, none = (draw_detections(image, result(), ["cat", "dog"], t) for t in (0.3, 0.5, 0.95))
    assert both.size == image.size and np.asarray(image).std() == 0 and np.array_equal(none, image)
    at = lambda drawn, x, y: drawn.getpixel((x, y))  # noqa: E731
    assert at(both, 30, 50) == at(sure, 30, 50) == colour_of(0) and at(both, 90, 70) == colour_of(1)
    assert at(sure, 90, 70) == (128, 128, 128) and at(both, 35, 35) == (128, 128, 128)
    assert colour_of(0) != colour_of(1)


def test_of_a_model_without_detections_the_best_proposals_are_drawn():
    image = Image.new("RGB", (400, 300), (128, 128, 128))
    proposals = torch.tensor([[10.0 * i, 10, 10.0 * i + 5, 200] for i in range(40)])
    drawn = np.asarray(draw_detections(image, ImageResult(proposals=proposals, proposal_logits=torch.zeros(40)), []))
    columns = (drawn != 128).any((0, 2))
    assert columns[:300].any() and not columns[296:].any()  # thirty of them


def test_a_wide_label_and_an_empty_result_are_drawn():
    image = Image.new("L", (20, 10), 128)
    drawn = draw_detections(image, ImageResult(torch.tensor([[0.0, 0, 19, 9]]), torch.ones(1), torch.zeros(1).long()),
                            ["a name much longer than the image is wide"])  # fmt: skip
    assert drawn.mode == "RGB" and drawn.size == (20, 10)
    empty = ImageResult(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert np.asarray(draw_detections(image, empty, ["a"])).std() == 0


def guided():
    probability = [torch.zeros(4, 6), torch.zeros(2, 3)]
    probability[0][1, 2], probability[1][0, 0] = 0.9, 0.5
    return GuidedAnchors(
        probability=probability, strides=[20.0, 40.0], centers=torch.zeros(30, 2), everywhere=torch.zeros(30, 4),
        active=torch.tensor([8, 24]), boxes=torch.tensor([[40.0, 20, 60, 40], [0, 0, 40, 40]]),
        scores=torch.tensor([0.9, 0.5]), levels=torch.tensor([0, 1]), regressed=torch.zeros(2, 4),
    )  # fmt: skip


def test_panels_are_those_of_what_there_is(tmp_path, monkeypatch):
    """Locations, anchors, proposals, detections; each only where the model has it."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    image = np.full((80, 120, 3), 128, dtype=np.uint8)
    proposals = {"proposals": torch.tensor([[10.0, 20, 60, 50]]), "proposal_logits": torch.zeros(1)}
    truth = torch.tensor([[10.0, 20, 60, 52], [0, 60, 20, 80]])
    for name, found, of in (("all", result(guided=guided(), **proposals), truth), ("boxes", result(), None),
                            ("proposals", ImageResult(**proposals), None)):  # fmt: skip
        draw_panels(tmp_path / f"{name}.png", image, found, of, ["cat", "dog"])
    titles = [[axis.get_title() for axis in figure.axes if axis.get_title()] for figure in kept]
    assert titles[0] == [
        "location probability", "2 active anchors", "100 best proposals: 1 of 2 objects at IoU 0.5",
        "1 detections (score ≥ 0.5)",
    ]  # fmt: skip
    assert titles[1:] == [["1 detections (score ≥ 0.5)"], ["1 best of 1 proposals"]]
    monkeypatch.undo()
    plt.close("all")
    for name in ("all", "boxes", "proposals"):
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width > 300


def test_the_most_probable_level_is_shown_at_every_pixel():
    found = probability_map(guided(), 80, 120)
    assert found.shape == (80, 120)
    expected = np.zeros((80, 120))
    expected[:40, :40] = 0.5
    expected[20:40, 40:60] = 0.9
    np.testing.assert_allclose(found, expected)
