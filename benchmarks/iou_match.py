"""Matching of anchors with boxes, streamed, against the IoU matrix in torch."""

import torchvision

from ga_scope.ops import iou_match

from . import harness

ANCHORS = 3 * sum(h * w for h, w in harness.LEVELS)


def matrix_route(anchors, boxes):
    overlap = torchvision.ops.box_iou(boxes, anchors)
    return (*overlap.max(0), *overlap.max(1))


def run(benchmark):
    for count in (30, 200, 1000):
        anchors, boxes = harness.random_boxes(ANCHORS), harness.random_boxes(count)
        # As a head lists them: row by row, level by level.
        order = (anchors[:, 1] // 32 * 1000 + anchors[:, 0] // 32).argsort()
        anchors = anchors[order]
        functions = {
            "ga_scope": lambda a=anchors, b=boxes: iou_match(a, b),
            "without best_for": lambda a=anchors, b=boxes: iou_match(a, b, low_quality_from=None),
        }
        if count <= 200:
            functions["matrix in torch"] = lambda a=anchors, b=boxes: matrix_route(a, b)
        benchmark.compare(f"{ANCHORS} anchors, G = {count}", functions, peers=("matrix in torch",))


if __name__ == "__main__":
    harness.main(run, __doc__, "iou_match")
