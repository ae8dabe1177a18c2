"""Labels from matches, samples from labels."""

import random

import pytest
import torch

from ga_scope.modeling.sampling import label_matches, sample_labels
from ga_scope.ops import Match, iou_match, reference

from ..ops.cases import random_boxes


def match_of(overlap, low_quality_from=0.0):
    """A Match of an (A, G) matrix."""
    of_anchors_and_boxes = reference.best_of_matrix(overlap)
    ignored = torch.zeros(len(overlap), dtype=torch.bool)
    return Match(*of_anchors_and_boxes, reference.best_for_of_matrix(overlap, low_quality_from), ignored)


OVERLAP = torch.tensor(
    [
        [0.8, 0.1, 0.0, 0.0],
        [0.5, 0.2, 0.0, 0.0],
        [0.1, 0.35, 0.0, 0.0],
        [0.0, 0.0, 0.2, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
)


def test_thresholds_and_low_quality():
    labels, index = label_matches(match_of(OVERLAP), 0.3, 0.7, 0.3)
    # Box 1's best anchor has 0.35: positive. Box 2's has 0.2: below the floor. Box 3 has none.
    assert labels.tolist() == [1, -1, 1, 0, 0]
    assert index.tolist() == [0, 0, 1, 2, -1]
    labels, _ = label_matches(match_of(OVERLAP), 0.3, 0.7, 0.0)
    assert labels.tolist() == [1, -1, 1, 1, 0]
    labels, _ = label_matches(match_of(OVERLAP), 0.3, 0.7)
    assert labels.tolist() == [1, -1, -1, 0, 0]


def test_all_anchors_that_tie_are_positive():
    overlap = torch.tensor([[0.4, 0.0], [0.4, 0.1], [0.2, 0.1], [0.4, 0.6]])
    labels, index = label_matches(match_of(overlap), 0.3, 0.7, 0.0)
    assert labels.tolist() == [1, 1, 0, 1]
    assert index.tolist() == [0, 0, 0, 1]  # the last anchor is best for both boxes


def test_ignored_anchors_are_not_negative():
    match = match_of(OVERLAP)._replace(ignored=torch.tensor([True, True, True, True, False]))
    labels, index = label_matches(match, 0.3, 0.7, 0.3)
    assert labels.tolist() == [1, -1, 1, -1, 0]  # positives of either rule stay
    assert index.tolist() == [0, 0, 1, 2, -1]


def test_a_shared_best_anchor_goes_to_one_box():
    overlap = torch.tensor([[0.4, 0.5, 0.45], [0.1, 0.1, 0.1]])
    labels, index = label_matches(match_of(overlap), 0.3, 0.7, 0.3)
    assert labels.tolist() == [1, 0] and index[0].item() == 2
    labels, index = label_matches(match_of(overlap), 0.3, 0.7, 0.3, keep_best_box=True)
    assert labels.tolist() == [1, 0] and index[0].item() == 1


def test_no_boxes_and_no_anchors():
    for anchors, boxes in ((4, 0), (0, 3), (0, 0)):
        match = iou_match(torch.rand(anchors, 4).cumsum(1), torch.rand(boxes, 4).cumsum(1) + 10)
        labels, index = label_matches(match, 0.3, 0.7, 0.3)
        assert labels.tolist() == [0] * anchors and index.tolist() == [-1] * anchors


# ---- the rules of others ------------------------------------------------------------------------


def anchors_of_grid(ratios=(0.5, 1.0, 2.0)):
    """An RPN's: sides of 32 and 64 pixels, a stride of 4 and 8 pixels apart."""
    levels = []
    for (height, width), stride, side in (((30, 40), 4, 32.0), ((15, 20), 8, 64.0)):
        sides = torch.tensor([(side * r**-0.5, side * r**0.5) for r in ratios])
        centers = reference.level_centers((height, width), stride, 0.0)[:, None]
        levels.append(torch.cat([centers - sides / 2, centers + sides / 2], 2).flatten(0, 1))
    return torch.cat(levels)


def scene():
    """Boxes of which each overlaps an anchor; many small, on whole pixels, alike, inside one another."""
    count = random.choice([1, 2, 7])
    boxes = random_boxes(count, (120, 160), torch.float32, snap=random.choice([0.0, 0.5, 1.0]))
    if random.random() < 0.6:
        small = torch.rand(4, 2) * torch.tensor([140.0, 100.0])
        boxes = torch.cat([boxes, torch.cat([small, small + 8 + 8 * torch.rand(4, 2)], 1)])
    if random.random() < 0.3:
        boxes = torch.cat([boxes, boxes.flip(0)])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([160.0, 120.0] * 2))
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)]


@pytest.mark.detectron2
@pytest.mark.parametrize("thresholds", [(0.3, 0.7), (0.4, 0.5)])
def test_labels_are_detectron2s(thresholds):
    """Its Matcher with low-quality matches, on scenes with and without hundreds of ties: every label, and the box of
    every positive."""
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    matcher = Matcher(list(thresholds), [0, -1, 1], allow_low_quality_matches=True)
    anchors, most = anchors_of_grid(), 0
    for _ in range(150):
        boxes = scene()
        if not len(boxes):
            continue
        index, labels = matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
        match = iou_match(anchors, boxes, low_quality_from=0.0)
        ours, our_index = label_matches(match, *thresholds, 0.0, keep_best_box=True)
        assert torch.equal(ours, labels)
        positive = labels == 1
        assert torch.equal(our_index[positive], index[positive])
        most = max(most, int((positive & (match.iou < thresholds[0])).sum()))
    assert most > 50


@pytest.mark.detectron2
def test_small_objects_get_as_many_positives_as_in_detectron2():
    """8 to 16 px below anchors of 32 px, four pixels apart: every anchor that covers one ties for its best."""
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    matcher, anchors = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True), anchors_of_grid()
    ours, theirs = [], []
    for _ in range(100):
        corner = torch.rand(1, 2) * torch.tensor([90.0, 60.0]) + 30
        box = torch.cat([corner, corner + 8 + 8 * torch.rand(1, 2)], 1)
        theirs.append(int((matcher(pairwise_iou(Boxes(box), Boxes(anchors)))[1] == 1).sum()))
        ours.append(int((label_matches(iou_match(anchors, box), 0.3, 0.7, 0.0)[0] == 1).sum()))
    assert ours == theirs and sum(ours) / len(ours) > 20


def labels_box_by_box(overlap, negative_below, positive_from, low_quality_from):
    """MMDetection's rule in its order: thresholds, then box by box the anchors that have the box's best IoU."""
    labels, index = [], []
    for row in overlap:
        best = row.max().item() if len(row) else 0.0
        labels.append(1 if best >= positive_from else 0 if best < negative_below else -1)
        index.append(int(row.argmax()) if best > 0 else -1)
    for g, column in enumerate(overlap.T):
        best = column.max().item()
        if best > 0 and best >= low_quality_from:
            for a in (column == best).nonzero().flatten().tolist():
                labels[a], index[a] = 1, g
    return labels, index


@pytest.mark.parametrize("low_quality_from", [0.0, 0.3, 0.6])
def test_labels_are_mmdetections(low_quality_from):
    anchors = anchors_of_grid((1.0,))[::3]
    for _ in range(60):
        boxes = scene()
        match = iou_match(anchors, boxes, low_quality_from=low_quality_from)
        labels, index = label_matches(match, 0.3, 0.7, low_quality_from)
        floor = torch.tensor(low_quality_from).item()  # as float32 compares
        expected = labels_box_by_box(reference.box_iou(anchors, boxes), 0.3, 0.7, floor)
        assert (labels.tolist(), index.tolist()) == expected


# ---- samples ------------------------------------------------------------------------------------


def test_samples_are_balanced_and_random():
    labels = torch.tensor([[1] * 30 + [0] * 60 + [-1] * 10, [1] * 2 + [0] * 98, [-1] * 100], dtype=torch.int8)
    positives, negatives = sample_labels(labels, 40, 0.5)
    for image, expected in enumerate(((20, 20), (2, 38), (0, 0))):
        of_image = [int((chosen // 100 == image).sum()) for chosen in (positives, negatives)]
        assert tuple(of_image) == expected
    assert (labels.flatten()[positives] == 1).all() and (labels.flatten()[negatives] == 0).all()
    assert len(positives.unique()) == len(positives) and len(negatives.unique()) == len(negatives)
    again, _ = sample_labels(labels, 40, 0.5)
    assert not torch.equal(positives, again)


def test_every_subset_is_as_likely():
    """Of five positives two are drawn, of four negatives three: ten and four subsets, 4000 images."""
    labels = torch.tensor([1, 0, -1, 1, 0, 1, 0, 1, 0, 1], dtype=torch.int8).expand(4000, -1)
    positives, negatives = sample_labels(labels, 5, 0.5)
    for chosen, size, subsets in ((positives, 2, 10), (negatives, 3, 4)):
        sets = (chosen % 10).view(4000, size).sort(1).values
        counts = sets.unique(dim=0, return_counts=True)[1].double()
        assert len(counts) == subsets
        expected = 4000 / subsets
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize("labels", [torch.zeros(0, 7), torch.zeros(2, 0), torch.full((2, 3), -1)])
def test_samples_of_nothing(labels):
    for chosen in sample_labels(labels.to(torch.int8), 40, 0.5):
        assert chosen.shape == (0,) and chosen.dtype == torch.int64


def test_fewer_locations_than_the_sample():
    positives, negatives = sample_labels(torch.tensor([[1, 1, 1, 0]], dtype=torch.int8), 256, 0.5)
    assert sorted(positives.tolist()) == [0, 1, 2] and negatives.tolist() == [3]
    positives, negatives = sample_labels(torch.tensor([[1, 1, 1, 0]], dtype=torch.int8), 3, 0.4)
    assert len(positives) == 1 and negatives.tolist() == [3]
