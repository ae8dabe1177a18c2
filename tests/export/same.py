"""When two ways of computing a model's results agree."""

import torch

PIXELS, SCORES = 0.05, 1e-4


def assert_same(found, expected):
    """As many boxes in every image, and to each its own: within 0.05 pixels, 1e-4 of the score, of the same class.

    Boxes of one score may change places.
    """
    *found, count = found
    *expected, wanted = expected
    assert count.tolist() == wanted.tolist()
    for image, number in enumerate(count.tolist()):
        boxes, scores, *classes = (part[image, :number] for part in found)
        same = (boxes[:, None] - expected[0][image, None, :number]).abs().amax(2) <= PIXELS
        same &= (scores[:, None] - expected[1][image, None, :number]).abs() <= SCORES
        for label, other in zip(classes, expected[2:]):
            same &= label[:, None] == other[image, None, :number]
        # Of boxes that are alike each must have another one.
        free = torch.ones(number, dtype=torch.bool)
        for row in same:
            place = (row & free).nonzero()
            assert len(place), f"image {image}: a box without its like"
            free[place[0]] = False
        assert not any(part[image, number:].any() for part in found)
