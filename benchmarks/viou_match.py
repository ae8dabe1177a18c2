"""Shape targets (vIoU, Eq. 5) of 89,523 locations, streamed, against the matrix route in plain torch."""

import torch
import torchvision

from ga_scope.ops import reference, viou_match

from . import harness

# The paper's nine shapes per level, the exact mode's range around them, and the least vIoU that the head asks for.
SIDES = [(k * r**-0.5, k * r**0.5) for k in (1.0, 2 ** (1 / 3), 2 ** (2 / 3)) for r in (0.5, 1.0, 2.0)]
SHAPES = torch.tensor([[(8 * s * w, 8 * s * h) for w, h in SIDES] for s in harness.STRIDES])
SIZE_RANGE = torch.tensor([[8 * s * 0.7, 8 * s * 2.3] for s in harness.STRIDES])
MIN_IOU = 0.3


def all_anchors():
    """(L * 9, 4): every shape at every location."""
    parts = []
    for size, stride, shapes in zip(harness.LEVELS, harness.STRIDES, SHAPES):
        centers = reference.level_centers(size, stride)[:, None]
        parts.append(torch.cat([centers - shapes / 2, centers + shapes / 2], 2).flatten(0, 1))
    return torch.cat(parts)


def matrix_route(boxes):
    overlap = torchvision.ops.box_iou(all_anchors(), boxes).view(-1, len(SIDES), len(boxes)).amax(1)
    return (*overlap.max(1), *overlap.max(0))


def counts(benchmark):
    """Against the number of boxes."""
    for count in (7, 30, 200, 1000, 3000):
        boxes = harness.random_boxes(count)

        def match(boxes=boxes, **options):
            return viou_match(boxes, harness.LEVELS, harness.STRIDES, **options)

        functions = {
            "sampled, min_iou 0.3": lambda m=match: m(shapes=SHAPES, min_iou=MIN_IOU),
            "exact, min_iou 0.3": lambda m=match: m(size_range=SIZE_RANGE, min_iou=MIN_IOU),
            "sampled, min_iou 0": lambda m=match: m(shapes=SHAPES),
            "exact, min_iou 0": lambda m=match: m(size_range=SIZE_RANGE),
        }
        if count <= 200:  # 3000 boxes would need 72 GB
            functions["matrix in torch"] = lambda b=boxes: matrix_route(b)
        benchmark.compare(f"G = {count}", functions, peers=("matrix in torch",))


def batch(benchmark):
    functions = {}
    for images in (1, 2, 4, 8):
        boxes = [harness.random_boxes(30) for _ in range(images)]
        functions[f"batch {images}"] = lambda b=boxes: viou_match(
            b, harness.LEVELS, harness.STRIDES, shapes=SHAPES, min_iou=MIN_IOU
        )
    per_image = lambda name, ms: {"ms per image": ms[name] / int(name.split()[1])}  # noqa: E731
    benchmark.compare("G = 30 per image by batch, sampled, min_iou 0.3", functions, figures=per_image)


def run(benchmark):
    counts(benchmark)
    batch(benchmark)


if __name__ == "__main__":
    harness.main(run, __doc__, "viou_match")
