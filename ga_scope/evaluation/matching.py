"""Which detection finds which object of an image, for pictures and tables that AP alone does not give."""

from typing import NamedTuple

import numpy as np

NOTHING, REGION = -1, -2  # instead of an object: none, and a region in which nothing counts


def overlaps(boxes: np.ndarray, others: np.ndarray, of_boxes: bool = False) -> np.ndarray:
    """IoU (D, G) of boxes (D, 4) and (G, 4), x1, y1, x2, y2; ``of_boxes``: the intersection by the first's areas."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    intersection = np.clip(high - low, 0, None).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    whole = areas if of_boxes else areas + (others[:, 2:] - others[:, :2]).prod(1) - intersection
    return np.divide(intersection, whole, out=np.zeros_like(intersection), where=intersection > 0)


class Matches(NamedTuple):
    """Of the detections of an image, in the order that they were given."""

    objects: np.ndarray  # (D,) the object that each finds, NOTHING or REGION
    best: np.ndarray  # (D,) the object that it overlaps most, of any class and found or not; NOTHING without overlap
    iou: np.ndarray  # (D,) with that one


def match(boxes, labels, truth, truth_labels, regions, iou: float = 0.5, any_class: bool = False) -> Matches:
    """COCO's rule: detections choose in the order of their scores, each the object of its class, not yet found, that it
    overlaps most, the last of equals. What finds none and lies in a region does not count.

    Args:
        boxes: (D, 4), best first, x1, y1, x2, y2.
        labels: (D,).
        truth, truth_labels: (G, 4), (G,).
        regions: (K, 4): crowds, and objects to ignore.
        iou: from which a detection finds an object.
        any_class: the classes do not matter.
    """
    overlap = overlaps(boxes, truth)
    found = np.full(len(boxes), NOTHING)
    free = np.ones(len(truth), dtype=bool)
    inside = (overlaps(boxes, regions, of_boxes=True) >= iou).any(1)
    for d in range(len(boxes)):
        eligible = free & (overlap[d] >= iou)
        if not any_class:
            eligible &= truth_labels == labels[d]
        if eligible.any():
            values = np.where(eligible, overlap[d], -1)
            found[d] = len(truth) - 1 - values[::-1].argmax()
            free[found[d]] = False
        elif inside[d]:
            found[d] = REGION
    if not len(truth):
        return Matches(found, np.full(len(boxes), NOTHING), np.zeros(len(boxes)))
    best, most = overlap.argmax(1), overlap.max(1) if len(boxes) else np.zeros(0)
    return Matches(found, np.where(most > 0, best, NOTHING), most)


def best_f1(scores: np.ndarray, right: np.ndarray, objects: int) -> tuple[float, float]:
    """The score from which on detections have the best F1, and that F1; (1, 0) where nothing is right.

    Args:
        scores: (D,) of all detections that count.
        right: (D,) bool, whether each finds an object.
        objects: that there are.
    """
    if not right.any():
        return 1.0, 0.0
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], right[order].cumsum()
    f1 = 2 * hits / (np.arange(len(hits)) + 1 + objects)
    last_of_equals = np.append(scores[1:] < scores[:-1], True)
    best = int(np.where(last_of_equals, f1, -1).argmax())
    return float(scores[best]), float(f1[best])
