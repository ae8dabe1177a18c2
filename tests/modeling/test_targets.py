"""What Guided Anchoring's branches and ScopeNet's classifier learn: ties, the release's rules, ignore boxes."""

import math

import pytest
import torch

from ga_scope.modeling.guided_anchoring import LocationTargets, ShapeTargets
from ga_scope.modeling.guided_anchoring.losses import center_loss, location_loss, shape_loss
from ga_scope.modeling.pyramid import Pyramid
from ga_scope.modeling.scope import ScopeTargets, ignored_locations
from ga_scope.ops import reference

from .scenes import scene

PYRAMID = Pyramid(1, ((50, 60), (25, 30), (13, 15)), (4, 8, 16))


def small_boxes(count, low, high):
    corner = torch.rand(count, 2) * torch.tensor([150.0, 110.0]) + 40
    return torch.cat([corner, corner + low + (high - low) * torch.rand(count, 2)], 1)


@pytest.mark.parametrize("mode", ["sampled", "exact"])
@pytest.mark.parametrize("cell_offset", [0.0, 0.5])
def test_positives_of_small_objects_lie_about_their_centres(mode, cell_offset):
    """Of the locations that tie for a small object's vIoU the first one lies above and left of the centre; all of them
    about it."""
    targets = ShapeTargets(mode, low_quality_iou=0.0, scales=(1.0,), ratios=(1.0,), size_range=(1.0, 2.0))
    pyramid = Pyramid(1, PYRAMID.sizes, PYRAMID.strides, cell_offset)
    centers, shifts, first = pyramid.centers("cpu"), [], []
    for box in small_boxes(60, 8, 16):
        labels, index = targets.labels(pyramid, [box[None]])
        positive = (labels[0] == 1).nonzero()[:, 0]
        assert (index[0, positive] == 0).all() and len(positive) > 9
        shift = (centers[positive] - (box[:2] + box[2:]) / 2) / 4
        shifts.append(shift.mean(0))
        first.append(shift[0])
    # Of one box the grid's phase leaves up to half a cell.
    assert (torch.stack(shifts).abs() <= 0.5 + 1e-4).all()
    assert torch.stack(shifts).mean(0).abs().max() < 0.1
    assert (torch.stack(first).mean(0) < -1.5).all()  # what the lowest index would be


def test_every_tied_location_learns_its_box():
    """Of equal boxes the last; the sample is large enough for all."""
    targets = ShapeTargets(low_quality_iou=0.0, scales=(1.0,), ratios=(1.0,), per_image=2000)
    boxes = torch.tensor([[100.0, 80.0, 110.0, 90.0], [62.0, 50.0, 71.0, 59.0], [100.0, 80.0, 110.0, 90.0]])
    labels, index = targets.labels(PYRAMID, [boxes])
    points = PYRAMID.centers("cpu")[: 50 * 60]
    for box, owner in ((boxes[0], 2), (boxes[1], 1)):
        covering = torch.maximum(points - box[:2], box[2:] - points).amax(1) <= 16  # of a side of 32 px
        assert covering.sum() in (25, 30, 36)
        assert torch.equal((labels[0] == 1) & (index[0] == owner), torch.cat([covering, covering.new_zeros(945)]))
    samples = targets(PYRAMID, [boxes])
    assert len(samples.locations) == int((labels == 1).sum()) and samples.sampled == 2000


def test_samples_count_their_negatives():
    boxes = [small_boxes(3, 20, 60), torch.zeros(0, 4)]
    pyramid = Pyramid(2, PYRAMID.sizes, PYRAMID.strides)
    samples = ShapeTargets(per_image=40)(pyramid, boxes)
    assert samples.sampled == 80 and 0 < len(samples.locations) <= 20
    assert torch.equal(samples.gt_sides, samples.gt_boxes[:, 2:] - samples.gt_boxes[:, :2])


def bounded_iou_of_the_release(centers, sides, gt, beta=0.2):
    """Four terms per location, fact 6: of dx, dy, dw and dh, smooth L1 of 1 minus the IoU that each leaves at most."""
    total = []
    for (x, y), (w, h), (x1, y1, x2, y2) in zip(centers, sides, gt.tolist(), strict=True):
        gt_w, gt_h = x2 - x1, y2 - y1
        dx, dy = abs((x1 + x2) / 2 - x), abs((y1 + y2) / 2 - y)
        terms = [max((gt_w - 2 * dx) / (gt_w + 2 * dx), 0), max((gt_h - 2 * dy) / (gt_h + 2 * dy), 0)]
        terms += [torch.minimum(gt_w / w, w / gt_w), torch.minimum(gt_h / h, h / gt_h)]
        for term in terms:
            loss = 1 - torch.as_tensor(term)
            total.append(0.5 * loss**2 / beta if loss < beta else loss - 0.5 * beta)
    return torch.stack([t.to(sides.dtype) for t in total]).sum()


def test_shape_loss_of_the_release():
    """Both divisors; two of the release's four terms are constants."""
    boxes = small_boxes(4, 20, 70).double()
    samples = ShapeTargets(per_image=64)(PYRAMID, [boxes])
    centers = PYRAMID.centers("cpu").double()[samples.locations]
    sides = (samples.gt_sides * torch.rand_like(samples.gt_sides) * 2).requires_grad_()
    expected = bounded_iou_of_the_release(centers.tolist(), sides, samples.gt_boxes) / 64
    ours = (shape_loss(sides, samples.gt_sides) + center_loss(centers, samples.gt_boxes)).sum() / samples.sampled
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(shape_loss(sides, samples.gt_sides).sum() / samples.sampled, sides)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, sides)[0])


def test_location_targets_and_loss_of_the_release():
    """Facts 2 to 5 on one scene: labels by the release's loop, weights 1 and 0.1, divisor N sum HW / 200."""
    pyramid = Pyramid(2, PYRAMID.sizes, PYRAMID.strides, 0.0)
    boxes = [small_boxes(6, 10, 90), small_boxes(3, 8, 16)]
    labels = LocationTargets(rule="release")(pyramid, boxes)
    for image, found in zip(boxes, labels):
        expected = reference.location_targets(image, pyramid.sizes, pyramid.strides, cell_offset=0.0, rule="release")
        assert torch.equal(found, expected)
    logits, total = torch.randn(labels.shape), 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist()):
        p = 1 / (1 + math.exp(-logit))
        if label == 1:
            total -= 0.25 * (1 - p) ** 2 * math.log(p)
        elif label == 0:
            total -= 0.1 * 0.75 * p**2 * math.log(1 - p)
    divisor = 2 * sum(h * w for h, w in pyramid.sizes) / 200
    assert location_loss(logits, labels).item() == pytest.approx(total / divisor, rel=1e-5)


def test_the_release_has_more_positives():
    """Borders that are rounded and included: about twice the paper's pixels in CR on small objects."""
    pyramid, boxes = Pyramid(1, PYRAMID.sizes, PYRAMID.strides, 0.0), [small_boxes(30, 10, 60)]
    counts = [int((LocationTargets(rule=rule)(pyramid, boxes) == 1).sum()) for rule in ("paper", "release")]
    assert 1.3 * counts[0] < counts[1] < 4 * counts[0]


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="rule: expected 'paper' or 'release', got 'mmdet'"):
        LocationTargets(rule="mmdet")


# ---- ignore boxes of ScopeNet -------------------------------------------------------------------


def test_ignored_locations_are_those_in_ignore_boxes_that_learn_nothing():
    some = 0
    for _ in range(30):
        pyramid = Pyramid(2, ((20, 24), (10, 12), (5, 6), (3, 3), (2, 2)), (8, 16, 32, 64, 128), 0.5)
        boxes, crowds = ([scene(160, 192) for _ in range(2)] for _ in range(2))
        learned = ScopeTargets()(pyramid, boxes).classification
        ignored = ignored_locations(pyramid, learned, crowds)
        points = pyramid.centers("cpu").double()
        for image in range(2):
            expected = reference.inside_any(points, crowds[image]) & (learned[image] == -1)
            assert torch.equal(ignored[image], expected)
            some += int((learned[image] >= 0)[reference.inside_any(points, crowds[image])].sum())
    assert some > 0  # objects in crowds


def test_ignored_locations_without_ignore_boxes():
    pyramid = Pyramid(2, ((4, 4),), (8,))
    learned = torch.full((2, 16), -1)
    assert not ignored_locations(pyramid, learned, [torch.zeros(0, 4)] * 2).any()
    with pytest.raises(ValueError, match="ignore_boxes: expected those of 2 images, got 1"):
        ignored_locations(pyramid, learned, [torch.zeros(0, 4)])
