"""Location targets (section 3.4) of five levels, against a loop over boxes in torch."""

import math

import torch

from ga_scope.ops import location_targets

from . import harness


def loop_over_boxes(boxes):
    """What the targets are without an operator: every box painted on its level and the adjacent ones."""
    levels = [torch.zeros(size, dtype=torch.int8) for size in harness.LEVELS]
    boxes = boxes.tolist()

    def paint(level, box, ratio, label):
        x1, y1, x2, y2 = box
        stride = harness.STRIDES[level]
        cx, cy, half_w, half_h = (x1 + x2) / 2, (y1 + y2) / 2, ratio * (x2 - x1) / 2, ratio * (y2 - y1) / 2
        rows = slice(max(0, math.ceil((cy - half_h) / stride - 0.5)), math.floor((cy + half_h) / stride + 0.5))
        columns = slice(max(0, math.ceil((cx - half_w) / stride - 0.5)), math.floor((cx + half_w) / stride + 0.5))
        levels[level][rows, columns] = label

    homes = [
        min(max(math.floor(math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 32) + 0.5), 0), 4) for x1, y1, x2, y2 in boxes
    ]
    for box, home in zip(boxes, homes):
        for level in range(max(0, home - 1), min(5, home + 2)):
            paint(level, box, 0.5, -1)
    for box, home in zip(boxes, homes):
        paint(home, box, 0.2, 1)
    return torch.cat([level.flatten() for level in levels])


def run(benchmark):
    for count in (7, 30, 200, 3000):
        boxes = harness.random_boxes(count)
        functions = {
            "ga_scope": lambda b=boxes: location_targets(b, harness.LEVELS, harness.STRIDES),
            "loop in torch": lambda b=boxes: loop_over_boxes(b),
        }
        benchmark.compare(f"G = {count}", functions, peers=("loop in torch",))


if __name__ == "__main__":
    harness.main(run, __doc__, "location_targets")
