"""Non-maximum suppression of boxes in groups, against torchvision's of classes."""

import torch
import torchvision

from ga_scope.ops import nms_mask

from . import harness

THRESHOLD = 0.5


def run(benchmark):
    for count in (1000, 2000, 5000):
        for groups in (1, 5, 80):
            boxes, group = harness.random_boxes(count), torch.randint(groups, (count,))
            scores = torch.arange(count, 0, -1.0)
            functions = {
                "ga_scope": lambda b=boxes[None], g=group[None]: nms_mask(b, THRESHOLD, groups=g),
                "torchvision": lambda b=boxes, s=scores, g=group: torchvision.ops.batched_nms(b, s, g, THRESHOLD),
            }
            benchmark.compare(f"{count} boxes in {groups} groups", functions, peers=("torchvision",), memory=False)
    boxes, group = harness.random_boxes(8 * 5000).view(8, 5000, 4), torch.randint(80, (8, 5000))
    benchmark.compare(
        "8 x 5000 boxes in 80 groups", {"ga_scope": lambda: nms_mask(boxes, THRESHOLD, groups=group)}, memory=False
    )


if __name__ == "__main__":
    harness.main(run, __doc__, "nms_mask")
