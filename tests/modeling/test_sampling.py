"""Labels from matches, samples from labels."""

import torch

from ga_scope.modeling.sampling import label_matches, sample_labels
from ga_scope.ops import Match


def match_of(overlap):
    """A Match of an (A, G) matrix."""
    iou, index = overlap.max(1)
    gt_iou, gt_index = overlap.max(0)
    ignored = torch.zeros(len(overlap), dtype=torch.bool)
    return Match(iou, index.masked_fill(iou == 0, -1), gt_iou, gt_index.masked_fill(gt_iou == 0, -1), ignored)


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


def test_ignored_anchors_are_not_negative():
    match = match_of(OVERLAP)._replace(ignored=torch.tensor([True, True, True, True, False]))
    labels, index = label_matches(match, 0.3, 0.7, 0.3)
    assert labels.tolist() == [1, -1, 1, -1, 0]  # positives of either rule stay
    assert index.tolist() == [0, 0, 1, 2, -1]


def test_a_shared_best_anchor_goes_to_one_box():
    overlap = torch.tensor([[0.4, 0.5, 0.45], [0.1, 0.1, 0.1]])
    labels, index = label_matches(match_of(overlap), 0.3, 0.7, 0.3)
    assert labels.tolist() == [1, 0] and index[0].item() == 2


def test_no_boxes_and_no_anchors():
    for anchors, boxes in ((4, 0), (0, 3), (0, 0)):
        of_anchors = torch.zeros(anchors), torch.full((anchors,), -1)
        of_boxes = torch.zeros(boxes), torch.full((boxes,), -1)
        empty = Match(*of_anchors, *of_boxes, torch.zeros(anchors, dtype=torch.bool))
        labels, index = label_matches(empty, 0.3, 0.7, 0.3)
        assert labels.tolist() == [0] * anchors and index.tolist() == [-1] * anchors


def test_samples_are_balanced_and_random():
    labels = torch.tensor([[1] * 30 + [0] * 60 + [-1] * 10, [1] * 2 + [0] * 98, [-1] * 100], dtype=torch.int8)
    positives, negatives = sample_labels(labels, 40, 0.5)
    for image, expected in enumerate(((20, 20), (2, 38), (0, 0))):
        of_image = [int((chosen // 100 == image).sum()) for chosen in (positives, negatives)]
        assert tuple(of_image) == expected
    assert (labels.flatten()[positives] == 1).all() and (labels.flatten()[negatives] == 0).all()
    assert len(positives.unique()) == len(positives)
    again, _ = sample_labels(labels, 40, 0.5)
    assert not torch.equal(positives, again)
