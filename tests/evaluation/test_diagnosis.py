"""What explain.py computes: overlaps by brute force, recalls by hand, and the advice that follows."""

import re

import numpy as np
import pytest
import torch
import torchvision

from ga_scope.evaluation.diagnosis import STAGES, Diagnosis, exact_viou
from ga_scope.modeling.guided_anchoring import GuidedAnchorHead, GuidedAnchorRPN, LocationSelection
from ga_scope.modeling.results import image_results


def test_exact_viou_is_the_maximum_over_all_sizes():
    box = torch.tensor([20.0, 30.0, 60.0, 50.0])
    centers = torch.tensor([[40.0, 40.0], [25.0, 45.0], [58.0, 31.0], [62.0, 40.0], [19.0, 29.0], [200.0, 0.0]])
    sides = torch.arange(1.0, 420)
    best = exact_viou(centers, box)
    for center, value in zip(centers, best):
        w, h = torch.meshgrid(sides, sides, indexing="ij")
        half = torch.stack([w, h], -1).view(-1, 2) / 2
        enumerated = torchvision.ops.box_iou(torch.cat([center - half, center + half], 1), box[None]).max()
        assert value >= enumerated - 1e-6 and value == pytest.approx(float(enumerated), abs=0.02)
    assert best[0] == 1 and best[-1] < 0.05


SIDES = [10.0] * 5 + [100.0] * 5


def filled(active=((0.1, 0.2),), topk=100, proposals=5, lower=None, sides=SIDES, **overlaps):
    """A diagnosis of ten objects with given overlaps per stage; stages that are left out are perfect."""
    found = Diagnosis([32.0, 64.0], 0.05, topk)
    found.active = [list(levels) for levels in active]
    found.sides = found.file_sides = sides
    for stage in STAGES:
        found.overlaps[stage] = list(overlaps.get(stage.replace(" ", "_"), [0.9] * 10))
    found.with_lower_threshold = list(lower or found.overlaps["location"])
    found.proposals = [proposals]
    return found


LOST = [0.2] * 4 + [0.9] * 6


def test_recall_by_stage_and_size():
    content = filled(location=LOST, anchor=LOST).as_dict()
    assert content["recall"]["reachable"]["all"] == 1
    assert content["recall"]["location"] == pytest.approx(
        {"all": 0.6, "small": 0.2, "medium": np.nan, "large": 1}, nan_ok=True
    )
    assert content["recall"]["after NMS"]["large"] == 1
    assert content["histogram"]["location"] == [0, 0, 4, 0, 0, 0, 0, 0, 0, 6]
    assert filled(location=LOST).as_dict(iou=0.1)["recall"]["location"]["all"] == 1


@pytest.mark.parametrize(
    "options, advice",
    [
        ({}, "Nothing stands out"),
        ({"reachable": LOST, "location": LOST, "anchor": LOST, "proposal": LOST, "after_NMS": LOST}, "finer level"),
        ({"location": LOST, "anchor": LOST, "proposal": LOST, "after_NMS": LOST, "lower": [0.9] * 10},
         "LOCATION.THRESHOLD 0.01 instead of 0.05 40 % would come back"),
        ({"location": LOST, "anchor": LOST, "proposal": LOST, "after_NMS": LOST}, "A lower threshold does not bring"),
        ({"anchor": LOST, "proposal": LOST, "after_NMS": LOST},
         r"median side is 10 px .*smaller than .*\(32 px\): lower MODEL.GUIDED_ANCHORING.SIGMA"),
        ({"anchor": LOST[::-1], "proposal": LOST[::-1], "after_NMS": LOST[::-1]},
         r"median side is 100 px .*larger than .*\(64 px\): raise MODEL.GUIDED_ANCHORING.SIGMA"),
        ({"anchor": LOST, "proposal": LOST, "after_NMS": LOST, "sides": [50.0] * 10}, "raise .*SHAPE.LOSS_WEIGHT"),
        ({"anchor": LOST}, "Nothing stands out"),  # box regression brings them back
        ({"proposal": LOST, "after_NMS": LOST}, "BBOX_REG_WEIGHTS"),
        ({"after_NMS": LOST}, "MODEL.RPN.NMS_THRESH"),
        ({"after_NMS": LOST, "proposals": 100}, "raise MODEL.RPN.POST_NMS_TOPK_TEST"),
        ({"active": ((0.5, 0.1),)}, "Level 0 .*more than 30 %"),
    ],
)  # fmt: skip
def test_advice(options, advice):
    texts = filled(**options).suggestions()
    assert len(texts) == 1 and re.search(advice, texts[0]), texts
    assert advice.startswith("Nothing") or texts[0] in filled(**options).text()


def test_no_objects():
    found = Diagnosis([32.0], 0.05, 100, active=[[0.1]], proposals=[3])
    assert "no object" in found.suggestions()[0] and "0 objects in 1 images" in found.text()


def test_stages_of_a_model():
    """Anchors, boxes and proposals are those that the model makes; a stage's overlap is its best box's."""
    torch.manual_seed(0)
    head = GuidedAnchorHead(8)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rpn = GuidedAnchorRPN(head, (8, 16), selection=LocationSelection(0.5)).eval()
    maps = [torch.randn(1, 8, 8, 12), torch.randn(1, 8, 4, 6)]
    (result,) = image_results(rpn(maps, [(64, 96)], maps=True), [(64, 96)], [(128, 192)])
    truth = torch.tensor([[20.0, 10.0, 80.0, 100.0], [100.0, 60.0, 180.0, 120.0]])  # in a file of twice the size
    found = Diagnosis([64.0, 128.0], 0.5, 1000)
    found.add(result, truth, 2.0)
    assert found.file_sides[0] == pytest.approx((60 * 90) ** 0.5) and found.sides[0] == found.file_sides[0] / 2
    best = torchvision.ops.box_iou(result.proposals, truth).max(0).values
    assert found.overlaps["after NMS"] == pytest.approx(best.tolist(), abs=1e-5)
    for stage in ("proposal", "anchor"):
        assert all(0 < value <= 1 for value in found.overlaps[stage])
    assert all(a >= b - 1e-6 for a, b in zip(found.overlaps["reachable"], found.overlaps["location"]))
    assert all(a >= b - 1e-6 for a, b in zip(found.overlaps["location"], found.overlaps["anchor"]))
    assert all(a >= b - 1e-6 for a, b in zip(found.overlaps["proposal"], found.overlaps["after NMS"]))
    assert sum(round(f * n) for f, n in zip(found.active[0], (96, 24))) == result.anchors
