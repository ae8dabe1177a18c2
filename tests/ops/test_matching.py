"""viou_match, iou_match and location_targets against matrices and rasters that share no code with them."""

import math
import os
import random
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from ga_scope.ops import iou_match, location_targets, reference, viou_match

from .cases import random_boxes

LEVELS = [[(9, 13), (5, 7), (3, 4)], [(6, 6)], [(12, 5), (6, 3)], [(1, 1), (1, 1)]]


def random_scene(most_boxes=12):
    sizes = random.choice(LEVELS)
    strides = [8 * 2**level for level in range(len(sizes))]
    image = (sizes[0][0] * 8, sizes[0][1] * 8)
    boxes = [random_boxes(random.choice([0, 1, 3, most_boxes]), image) for _ in range(random.choice([1, 3]))]
    return boxes, sizes, strides


def shapes_of(strides, scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)), ratios=(0.5, 1.0, 2.0)):
    sides = [[(8 * s * k / math.sqrt(r), 8 * s * k * math.sqrt(r)) for k in scales for r in ratios] for s in strides]
    return torch.tensor(sides, dtype=torch.float64)


def assert_match(match, overlaps, min_iou=0.0, tolerance=1e-12):
    """``overlaps``: the full matrix of each image. Values must agree; indices where values do not tie."""
    first_box = first_anchor = 0
    for overlap in overlaps:
        anchors, boxes = overlap.shape
        iou, index, gt_iou, gt_index = reference.best_of_matrix(overlap, min_iou)
        for ours, theirs, at, offset, matrix in (
            (match.iou, iou, first_anchor, None, None),
            (match.gt_iou, gt_iou, first_box, None, None),
            (match.index, index, first_anchor, first_box, overlap),
            (match.gt_index, gt_index, first_box, first_anchor, overlap.T),
        ):
            part = ours[at : at + len(theirs)]
            if offset is None:
                torch.testing.assert_close(part, theirs, rtol=tolerance, atol=tolerance)
                continue
            part = torch.where(part >= 0, part - offset, part)
            differ = (part != theirs).nonzero().squeeze(1)
            assert ((part >= 0) == (theirs >= 0)).all()
            rows = matrix[differ]
            ours_value = rows.gather(1, part[differ, None]) if len(differ) else rows[:, :0]
            theirs_value = rows.gather(1, theirs[differ, None]) if len(differ) else rows[:, :0]
            torch.testing.assert_close(ours_value, theirs_value, rtol=1e-12, atol=1e-12)
        first_box, first_anchor = first_box + boxes, first_anchor + anchors


def centers_of(sizes, strides, offset=0.5):
    return torch.cat([reference.level_centers(size, s, offset) for size, s in zip(sizes, strides)]).double()


def viou_matrix(boxes, sizes, strides, shapes, offset=0.5):
    parts = [
        reference.viou(reference.level_centers(size, s, offset).double(), boxes, level)
        for size, s, level in zip(sizes, strides, shapes)
    ]
    return torch.cat(parts)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("block", range(10))
def test_viou_sampled_equals_the_matrix(block):
    """100 cases each; boxes on the border, outside, tiny and huge; any floor."""
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        scales = random.choice([(1.0,), (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 0.8, 1, 1.5, 2)])
        shapes = shapes_of(strides, scales)
        min_iou, offset = random.choice([0.0, 0.3, 0.5]), random.choice([0.0, 0.5])
        match = viou_match(boxes, sizes, strides, shapes=shapes, min_iou=min_iou, cell_offset=offset)
        overlaps = [viou_matrix(b, sizes, strides, shapes, offset) for b in boxes]
        if any((abs(o - min_iou) < 1e-12).any() for o in overlaps):
            min_iou = 0.0  # a value exactly at the floor: rounding decides
            match = viou_match(boxes, sizes, strides, shapes=shapes, cell_offset=offset)
        assert_match(match, overlaps, min_iou)


@pytest.mark.usefixtures("device")
def test_viou_exact_is_never_below_a_grid_search():
    """10,000 shapes per location: exact mode is at least as good everywhere, and not better than a finer search
    around its own optimum allows."""
    axis = torch.exp(torch.linspace(0, math.log(800), 100, dtype=torch.float64))
    grid = torch.cartesian_prod(axis, axis)
    for _ in range(4):
        boxes, sizes, strides = random_scene(4)
        boxes = boxes[:1]
        match = viou_match(boxes, sizes, strides)
        best = reference.viou(centers_of(sizes, strides), boxes[0], grid)
        best = best.max(1).values if boxes[0].shape[0] else best.new_zeros(len(best))
        assert (match.iou >= best - 1e-12).all()
        # The grid's steps are 7 %: its best is within that of the truth in each direction.
        within = (boxes[0][:, 2:] - boxes[0][:, :2]).max() < 300 if len(boxes[0]) else False
        if within:
            assert (match.iou <= best * 1.15 + 0.02).all()


@pytest.mark.usefixtures("device")
def test_viou_exact_is_attained():
    """The four candidates of the proof, as anchors, reach the value that exact mode reports."""
    for _ in range(50):
        boxes, sizes, strides = random_scene()
        boxes = [b for b in boxes if len(b)][:1]
        if not boxes:
            continue
        match = viou_match(boxes, sizes, strides)
        centers = centers_of(sizes, strides)
        kept = match.index >= 0
        box, center = boxes[0][match.index[kept]], centers[kept]
        near, far = center - box[:, :2], box[:, 2:] - center
        sides = torch.stack([2 * torch.minimum(near, far), 2 * torch.maximum(near, far)])
        best = torch.zeros(len(box), dtype=torch.float64)
        for w in sides[:, :, 0]:
            for h in sides[:, :, 1]:
                half = torch.stack([w, h], 1).clamp(min=0) / 2
                anchors = torch.cat([center - half, center + half], 1)
                corner = torch.minimum(anchors[:, 2:], box[:, 2:]) - torch.maximum(anchors[:, :2], box[:, :2])
                inter = corner.clamp(min=0).prod(1)
                areas = (anchors[:, 2:] - anchors[:, :2]).prod(1) + (box[:, 2:] - box[:, :2]).prod(1)
                best = torch.maximum(best, inter / (areas - inter))
        torch.testing.assert_close(match.iou[kept], best, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("device")
def test_viou_size_range():
    """With a size range the maximum is over the shapes of that range (grid search, per level)."""
    for _ in range(5):
        boxes, sizes, strides = random_scene(4)
        ranges = torch.tensor([[0.7 * 8 * s, 2.3 * 8 * s] for s in strides], dtype=torch.float64)
        min_iou = random.choice([0.0, 0.3])
        match = viou_match(boxes[:1], sizes, strides, size_range=ranges, min_iou=min_iou)
        axes = [torch.linspace(math.log(a), math.log(b), 40, dtype=torch.float64).exp() for a, b in ranges.tolist()]
        overlap = viou_matrix(boxes[0], sizes, strides, [torch.cartesian_prod(a, a) for a in axes])
        best = overlap.max(1).values if overlap.shape[1] else overlap.new_zeros(len(overlap))
        best = best.masked_fill(best < min_iou, 0)
        assert (match.iou >= best - 1e-12).all()
        assert (match.iou <= best * 1.08 + 0.02)[best > min_iou + 0.03].all()


@pytest.mark.usefixtures("device")
def test_floor_skips_nothing_that_reaches_it():
    """The bound of csrc/overlap.h: whatever min_iou is, the matches above it are those found without it."""
    for _ in range(60):
        boxes, sizes, strides = random_scene()
        mode = random.choice([{}, {"shapes": shapes_of(strides)}])
        full = viou_match(boxes, sizes, strides, **mode)
        for floor in (0.05, 0.3, 0.5, 0.9):
            pruned = viou_match(boxes, sizes, strides, **mode, min_iou=floor)
            keep = full.iou >= floor
            assert torch.equal(pruned.iou, full.iou.masked_fill(~keep, 0))
            assert torch.equal(pruned.index, full.index.masked_fill(~keep, -1))
            assert torch.equal(pruned.gt_iou, full.gt_iou.masked_fill(full.gt_iou < floor, 0))
            assert torch.equal(pruned.gt_index, full.gt_index.masked_fill(full.gt_iou < floor, -1))
            at_least = viou_match(boxes, sizes, strides, **mode, low_quality_from=floor)
            assert torch.equal(pruned.best_for, at_least.best_for)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_is_a_range_without_bounds(dtype):
    """Bit by bit, and box by box: any size has a shorter way to its candidates, and on CUDA one division for all."""
    sizes, strides = [(13, 17), (7, 9)], [8, 16]
    unbounded = torch.tensor([[0.0, 1e30]] * 2, dtype=dtype)
    scene = random_boxes(40, (104, 136), dtype)
    centre = torch.tensor([68.0, 52.0], dtype=dtype)  # of a location of the first level, where near and far are one
    sides = torch.tensor([[4.0, 4.0], [60.0, 3.0], [1e-3, 1e-3], [2000.0, 2000.0], [1e-19, 1e-19]], dtype=dtype)
    centred = torch.cat([centre - sides / 2, centre + sides / 2], 1)
    for box in (*scene, *centred):
        free, bounded = (
            viou_match([box[None]], sizes, strides),
            viou_match([box[None]], sizes, strides, size_range=unbounded),
        )
        for a, b in zip(free, bounded):
            assert torch.equal(a, b)
    free, bounded = viou_match([scene], sizes, strides), viou_match([scene], sizes, strides, size_range=unbounded)
    assert all(torch.equal(a, b) for a, b in zip(free, bounded))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_match_equals_the_matrix(dtype):
    for _ in range(200):
        images = random.choice([1, 3])
        anchors = [random_boxes(random.choice([0, 1, 70, 200]), (100, 140), dtype) for _ in range(images)]
        boxes = [random_boxes(random.choice([0, 1, 9]), (100, 140), dtype) for _ in range(images)]
        for items in (*anchors, *boxes):
            if len(items) > 2:
                items[0] = float("nan")
                items[1, 2] = items[1, 0]
        match = iou_match(anchors, boxes)
        overlaps = [reference.box_iou(a, b) for a, b in zip(anchors, boxes)]
        assert match.iou.dtype == dtype
        assert_match(match, overlaps, tolerance=0)  # bit by bit: each operation is rounded once


def assert_best_for(match, overlaps, low_quality_from=0.0, min_iou=0.0):
    """Against the full matrix of each image, whose ties are ties of the bits."""
    first_box, expected = 0, []
    for overlap in overlaps:
        best_for = reference.best_for_of_matrix(overlap, low_quality_from, min_iou)
        expected.append(torch.where(best_for < 0, -1, best_for + first_box))
        first_box += overlap.shape[1]
    assert torch.equal(match.best_for, torch.cat(expected))


def grid_anchors(sizes, strides, dtype):
    """Three shapes at every cell, so that all that cover a small box tie."""
    sides = torch.tensor([(3.0, 3.0), (2.0, 4.5), (6.0, 6.0)], dtype=dtype)
    levels = []
    for size, stride in zip(sizes, strides):
        centers = reference.level_centers(size, stride).to(dtype)[:, None]
        levels.append(torch.cat([centers - sides * stride / 2, centers + sides * stride / 2], 2).flatten(0, 1))
    return torch.cat(levels)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_anchor_that_ties_for_a_boxs_best(dtype):
    """Of iou_match: anchors of a grid, boxes with hundreds of ties, equal boxes, shared anchors, any floor."""
    most = 0
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        boxes = [b.to(dtype) for b in boxes]
        if random.random() < 0.5:
            boxes = [torch.cat([b, b[: len(b) // 2]]) for b in boxes]
        anchors = [grid_anchors(sizes, strides, dtype)[torch.randperm(3 * sum(h * w for h, w in sizes))] for _ in boxes]
        floor = random.choice([0.0, 0.1, 0.3, 0.7])
        match = iou_match(anchors, boxes, low_quality_from=floor)
        assert_best_for(match, [reference.box_iou(a, b) for a, b in zip(anchors, boxes)], floor)
        assert (iou_match(anchors, boxes, low_quality_from=None).best_for == -1).all()
        most = max([most, *match.best_for[match.best_for >= 0].bincount().tolist()])
    assert most > 20


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_location_that_ties_for_a_boxs_best(dtype):
    """Of viou_match, in every mode: its own values for one box alone are the columns of the matrix."""
    for _ in range(40):
        boxes, sizes, strides = random_scene(6)
        boxes = [b.to(dtype) for b in boxes]
        mode = random.choice(
            [
                {},
                {"shapes": shapes_of(strides).to(dtype)},
                {"size_range": torch.tensor([[5.6 * s, 18.4 * s] for s in strides], dtype=dtype)},
            ]
        )
        mode |= {"cell_offset": random.choice([0.0, 0.5])}
        floors = {"low_quality_from": random.choice([0.0, 0.3, 0.6]), "min_iou": random.choice([0.0, 0.4])}
        match = viou_match(boxes, sizes, strides, **mode, **floors)
        empty = [torch.zeros(sum(h * w for h, w in sizes), 0, dtype=dtype)]
        overlaps = [
            torch.cat(empty + [viou_match(box[None], sizes, strides, **mode).iou[:, None] for box in b], 1)
            for b in boxes
        ]
        assert_best_for(match, overlaps, **floors)
        for overlap, iou in zip(overlaps, match.iou.chunk(len(overlaps))):
            assert torch.equal(iou, reference.best_of_matrix(overlap, floors["min_iou"])[0])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_locations_whose_anchor_covers_a_box_tie(dtype):
    """The plateau of a small box is as large as the geometry says, and about its centre, though the distances from a
    location to its sides round otherwise at each (most where a coordinate is near 0). So is that of a box which holds
    every anchor."""
    stride, height, width, side, seen = 4, 30, 40, 32.0, 0
    centers = reference.level_centers((height, width), stride).double()
    for _ in range(100):
        small = random.random() < 0.5
        sides = torch.rand(2, dtype=dtype) * (8 if small else 16) + (8 if small else 48)
        box = torch.rand(2, dtype=dtype) * random.choice([1, 1, 60])
        box = torch.cat([box, box + sides])
        near, far = centers - box[:2].double(), box[2:].double() - centers
        reach = torch.maximum(near, far).amax(1) if small else -torch.minimum(near, far).amin(1)
        inside = reach <= (side / 2 if small else -side / 2)
        if ((reach.abs() - side / 2).abs() < 1e-3).any() or not inside.any():
            continue  # a border on a border: rounding decides
        shapes, span = torch.full((1, 1, 2), side, dtype=dtype), torch.full((1, 2), side, dtype=dtype)
        for mode in ({"shapes": shapes}, {"size_range": span}):
            match = viou_match(box[None], [(height, width)], [stride], **mode)
            assert torch.equal(match.best_for == 0, inside)
            assert match.iou[inside].unique().numel() == 1
        seen += int(inside.sum() > 1)
    assert seen > 50


def test_ties_do_not_depend_on_the_threads():
    anchors = grid_anchors([(40, 50), (20, 25)], [4, 8], torch.float32)
    boxes = [random_boxes(n, (160, 200), torch.float32) for n in (40, 7)]
    sizes, strides = [(40, 50), (20, 25)], [4, 8]
    shapes, threads, found = shapes_of(strides).float(), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append([*iou_match([anchors] * 2, boxes), *viou_match(boxes, sizes, strides, shapes=shapes)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0]))


DIGEST = """
import hashlib, torch
from ga_scope.ops import iou_match, viou_match
generator = torch.Generator().manual_seed(3)
digest, levels = hashlib.sha256(), ([(40, 50), (20, 25)], [4, 8])
for dtype in (torch.float32, torch.float64):
    def boxes(count, side):
        corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 200
        return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=dtype) * side], 1)
    few, shapes = boxes(60, 70), torch.rand(2, 9, 2, generator=generator, dtype=dtype) * 60
    span = torch.tensor([[20, 60], [40, 120]], dtype=dtype)
    for match in (
        iou_match(boxes(3001, 90), few), viou_match(few, *levels), viou_match(few, *levels, shapes=shapes),
        viou_match(few, *levels, size_range=span),
    ):
        for item in match:
            digest.update(item.numpy().tobytes())
print(torch.ops.ga_scope.cpu_capability(), digest.hexdigest())
"""


def test_every_instruction_set_matches_alike():
    """To the last bit: no product is fused into a sum."""
    sets = ["portable", "avx2", "avx512"]
    found = []
    for capability in sets[: sets.index(torch.ops.ga_scope.cpu_capability()) + 1]:
        environment = {**os.environ, "GA_SCOPE_CPU_CAPABILITY": capability}
        result = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        name, digest = result.stdout.split()
        assert name == capability
        found.append(digest)
    assert len(set(found)) == 1


def ignore_boxes_for(boxes, image, dtype=torch.float64):
    """Crowd regions per image, some without area or with a NaN."""
    regions = [random_boxes(random.choice([0, 1, 4]), image, dtype) for _ in boxes]
    for region in regions:
        if len(region) > 2:
            region[0, 1] = float("nan")
            region[1, 2] = region[1, 0]
    return regions


@pytest.mark.usefixtures("device")
def test_viou_ignores_locations_in_ignore_boxes():
    """And the match itself is that without them."""
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        regions = ignore_boxes_for(boxes, (sizes[0][0] * 8, sizes[0][1] * 8))
        offset, mode = random.choice([0.0, 0.5]), random.choice([{}, {"shapes": shapes_of(strides)}])
        match = viou_match(boxes, sizes, strides, cell_offset=offset, ignore_boxes=regions, **mode)
        expected = [reference.inside_any(centers_of(sizes, strides, offset), r) for r in regions]
        assert torch.equal(match.ignored, torch.cat(expected))
        plain = viou_match(boxes, sizes, strides, cell_offset=offset, **mode)
        assert all(torch.equal(a, b) for a, b in zip(match[:4], plain[:4])) and not plain.ignored.any()


def test_inside_means_that_an_anchor_of_some_size_is_mostly_in_the_box():
    """What viou_match's docstring says, by 400 shapes: more than half of one inside, if the centre is, else of none."""
    side = torch.exp(torch.linspace(-4, 5, 20, dtype=torch.float64))
    half = torch.cartesian_prod(side, side) / 2
    for center in torch.rand(200, 2, dtype=torch.float64) * 40:
        (box,) = random_boxes(1, (40, 40), snap=0).unbind(0)
        anchors = torch.cat([center - half, center + half], 1)
        near_border = (center - box.view(2, 2)).abs().min() < 0.01  # between the least side of the grid and 0
        if not near_border:
            mostly = bool((reference.part_inside(anchors, box[None]) > 0.5).any())
            assert mostly == bool(reference.inside_any(center[None], box[None])[0])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_ignores_anchors_mostly_in_ignore_boxes(dtype):
    for _ in range(100):
        boxes = [random_boxes(5, (100, 140), dtype) for _ in range(random.choice([1, 3]))]
        anchors = [random_boxes(random.choice([0, 1, 70]), (100, 140), dtype) for _ in boxes]
        regions, part = ignore_boxes_for(boxes, (100, 140), dtype), random.choice([0.3, 0.5, 1.0])
        match = iou_match(anchors, boxes, ignore_boxes=regions, ignore_from=part)
        parts = torch.cat([reference.part_inside(a, r).amax(1) if len(r) else torch.zeros(len(a)) for a, r in
                           zip(anchors, regions)])  # fmt: skip
        settled = (parts - part).abs() > 1e-5  # else rounding decides
        assert torch.equal(match.ignored[settled], (parts >= part)[settled])
        plain = iou_match(anchors, boxes)
        assert all(torch.equal(a, b) for a, b in zip(match[:4], plain[:4])) and not plain.ignored.any()


@pytest.mark.usefixtures("device")
def test_location_targets_ignore_cells_in_ignore_boxes():
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        regions = ignore_boxes_for(boxes, (sizes[0][0] * 8, sizes[0][1] * 8))
        settings = {"cell_offset": random.choice([0.5, 0.0]), "rule": random.choice(["paper", "release"])}
        labels = location_targets(boxes, sizes, strides, **settings, ignore_boxes=regions).view(len(boxes), -1)
        for image, region, label in zip(boxes, regions, labels):
            expected = reference.location_targets(image, sizes, strides, **settings, ignore_boxes=region)
            assert torch.equal(label, expected)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("block", range(5))
def test_location_targets_equal_a_raster(block):
    """100 scenes each; whatever the order of the boxes."""
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        center, ignore = random.choice([(0.2, 0.5), (0.1, 1.0), (0.5, 0.5)])
        sigma = random.choice([4.0, 8.0])
        settings = {"cell_offset": random.choice([0.5, 0.5, 0.0, 0.25])}  # the paper's, the release's
        settings |= {"center_ratio": center, "ignore_ratio": ignore, "sigma": sigma}
        labels = location_targets(boxes, sizes, strides, **settings).view(len(boxes), -1)
        for image, label in zip(boxes, labels):
            assert torch.equal(label, reference.location_targets(image, sizes, strides, **settings))
            shuffled = image[torch.randperm(len(image))]
            assert torch.equal(label, location_targets(shuffled, sizes, strides, **settings))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", range(3))
def test_location_targets_of_the_release_equal_its_loop(block, dtype):
    """100 scenes each, many with borders half-way between cells; the order of the boxes counts."""
    reordered = 0
    for _ in range(100):
        boxes, sizes, strides = random_scene()
        boxes = [torch.where(torch.rand(len(b), 1) < 0.5, (b / 2).round() * 2, b).to(dtype) for b in boxes]
        center, ignore = random.choice([(0.2, 0.5), (0.2, 0.5), (0.1, 1.0), (0.5, 0.5)])
        settings = {"cell_offset": random.choice([0.0, 0.0, 0.5]), "rule": "release"}
        settings |= {"center_ratio": center, "ignore_ratio": ignore, "sigma": random.choice([4.0, 8.0])}
        labels = location_targets(boxes, sizes, strides, **settings).view(len(boxes), -1)
        for image, label in zip(boxes, labels):
            assert torch.equal(label, reference.location_targets(image, sizes, strides, **settings))
            backwards = location_targets(image.flip(0), sizes, strides, **settings)
            assert torch.equal(backwards, reference.location_targets(image.flip(0), sizes, strides, **settings))
            reordered += not torch.equal(label, backwards)
    assert reordered > 5


def test_location_targets_of_the_release_by_hand():
    """Facts 3 and 4 of the release on a line of cells of stride 8, each box 20 high: one row of centres, ten cells."""

    def row(*spans):
        boxes = torch.tensor([[x1, 6.0, x2, 26.0] for x1, x2 in spans])
        labels = location_targets(boxes, [(4, 10)], [8], sigma=1.0, cell_offset=0.0, rule="release")
        return "".join({1: "+", -1: "-", 0: "."}[v] for v in labels.view(4, 10)[2].tolist())

    # 0.6 * 2 + 0.4 * 7 = 4, 0.4 * 2 + 0.6 * 7 = 5; 0.75 * 2 + 0.25 * 7 = 3.25, 0.25 * 2 + 0.75 * 7 = 5.75.
    assert row((16, 56)) == "...-++-..."
    # 0.6 * 0 + 0.4 * 6.25 = 2.5 -> 2 (half to even), 3.75 -> 4; 1.5625 -> 2, 4.6875 -> 5: one more than the points.
    assert row((0, 50)) == "..+++-...."
    # Alone the second has "-++-" from cell 5 on. The later one's ignore region erases a centre of the earlier one.
    assert row((16, 56), (32, 72)) == "...-+-++-."
    assert row((32, 72), (16, 56)) == "...-++-+-."
    # A centre of one cell at least, however small the box.
    assert row((41, 43)) == ".....+...."


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("rule", ["paper", "release"])
def test_every_box_keeps_a_centre(rule):
    sizes, strides = [(40, 40), (20, 20), (10, 10)], [4, 8, 16]
    for _ in range(200):
        box = random_boxes(1, (150, 150)).clamp(0, 150)
        if not (box[0, 2] > box[0, 0] and box[0, 3] > box[0, 1]):
            continue
        assert (location_targets(box, sizes, strides, rule=rule) == 1).any()


def level_found(box, base, levels):
    """The level that location_targets gives a box: the one of its centre. Strides are such that sigma strides[0] is
    ``base``, exactly."""
    labels = location_targets(box[None], [(1, 1)] * levels, [1.0] * levels, sigma=base)
    (level,) = (labels == 1).nonzero().flatten().tolist()
    return level


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_level_of_a_box_is_exact_at_ties(dtype):
    """Half a level goes up; one unit in the last place below it does not."""
    assert level_found(torch.tensor([0, 0, 32, 1024], dtype=dtype), 64.0, 8) == 2
    ties = 0
    for _ in range(400):
        base = random.choice(
            [64.0, 32.0, 10.0, 48.0, 0.75, 3 * 2.0**-40, 6.0 * 2**200 if dtype == torch.float64 else 6.0]
        )
        level = random.randrange(1, 8)
        # 2 w h = base^2 4^level
        part = random.choice([1.0, 2.0, 3.0, 5.0, 0.25, 1024.0])
        width, height = base * 2**level * part, base * 2**level / (2 * part)
        corner = torch.randint(-3, 4, (2,)).tolist() if base > 0.1 else [0, 0]
        box = torch.tensor([*corner, corner[0] + width, corner[1] + height], dtype=dtype)
        side = random.choice([2, 3])
        towards = random.choice([-math.inf, None, math.inf])
        if towards is not None:
            box[side] = torch.nextafter(box[side], torch.tensor(towards, dtype=dtype))
        exact = reference.level_of_box(box, base, 8)
        assert level_found(box, base, 8) == exact
        w, h = (Fraction(float(box[i + 2]) - float(box[i])) for i in (0, 1))
        ties += 2 * w * h == Fraction(base) ** 2 * 4**level
    assert ties > 80


@pytest.mark.usefixtures("device")
def test_level_of_boxes_whose_area_no_number_holds():
    def level(width, height, base):
        return level_found(torch.tensor([0, 0, width, height], dtype=torch.float64), base, 8)

    assert level(1e200, 1e200, 64.0) == 7 and level(1e-200, 1e-200, 64.0) == 0
    assert level(2.0**900, 2.0**-901, 0.25) == 2 and level(2.0**900, 2.0**-901, 0.25 + 2.0**-54) == 1
    assert level(2.0**600, 2.0**601, 2.0**600) == 1 and level(2.0**600, 2.0**600, 2.0**600) == 0
    assert level(math.inf, 1e-300, 1e300) == 7


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("match", [viou_match, location_targets])
def test_wild_boxes_match_nothing(match):
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [[nan, 0, 9, 9], [5, 5, 5, 9], [9, 9, 5, 5], [0, nan, 9, 9], [-inf, -inf, inf, inf], [0, 0, inf, 4]]
    )
    out = match(boxes, [(4, 4), (2, 2)], [8, 16])
    if match is viou_match:
        assert (out.index[:].ge(4) | out.index.eq(-1)).all() and not out.iou.isnan().any()
    else:
        assert out.shape == (20,)


ONE_LEVEL = (torch.zeros(3, 4), [(4, 4)], [8])
BAD_CALLS = [
    (viou_match, ([], [(4, 4)], [8]), {}, "gt_boxes: expected at least one image"),
    (viou_match, (torch.zeros(3, 5), [(4, 4)], [8]), {}, r"gt_boxes: expected tensors of shape \(G, 4\), got \(3, 5\)"),
    (viou_match, (torch.zeros(3, 4).half(), [(4, 4)], [8]), {}, "gt_boxes: expected dtype Float or Double, got Half"),
    (viou_match, (torch.zeros(3, 4), [(4, 4)], [8, 16]), {}, "strides: expected 1 numbers, one per level, got 2"),
    (viou_match, (torch.zeros(3, 4), [(0, 4)], [8]), {}, "level_sizes: expected sizes from 1 x 1 .* got 0 x 4"),
    (viou_match, (torch.zeros(3, 4), [(4, 4)], [-8]), {}, "strides: expected positive numbers, got -8"),
    (viou_match, (torch.zeros(3, 4), [], []), {}, "level_sizes: expected at least one level"),
    (viou_match, ONE_LEVEL, {"min_iou": 2.0}, r"min_iou: expected a number in \[0, 1\]"),
    (viou_match, ONE_LEVEL, {"shapes": torch.ones(2, 3, 2)}, r"shapes: expected shape \[1, 3, 2\]"),
    (viou_match, ONE_LEVEL, {"size_range": torch.ones(2)}, r"size_range: expected shape \[1, 2\]"),
    (
        viou_match,
        ONE_LEVEL,
        {"size_range": torch.ones(1, 2), "shapes": torch.ones(1, 3, 2)},
        "size_range: expected None where shapes are given",
    ),
    (iou_match, ([torch.zeros(3, 4)], [torch.zeros(3, 4)] * 2), {}, "gt_counts: expected 1 images, got 2"),
    (iou_match, (torch.zeros(3, 4), torch.zeros(3, 4).double()), {}, "gt_boxes: expected dtype Float, got Double"),
    (viou_match, ONE_LEVEL, {"ignore_boxes": [torch.zeros(1, 4)] * 2}, "ignore_counts: expected 1 images, got 2"),
    (viou_match, ONE_LEVEL, {"ignore_boxes": torch.zeros(2, 3)}, r"ignore_boxes: expected tensors of shape \(G, 4\)"),
    (
        location_targets,
        ONE_LEVEL,
        {"ignore_boxes": torch.zeros(2, 4).double()},
        "ignore_boxes: expected dtype Float, got Double",
    ),
    (
        iou_match,
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        {"ignore_from": 0.0},
        r"ignore_from: expected a number in \(0, 1\], got 0",
    ),
    (location_targets, (torch.zeros(3, 4), [(4, 4)], [8], 0.5, 0.2), {}, "center_ratio: expected 0 <= center_ratio"),
    (location_targets, ONE_LEVEL, {"rule": "mmdet"}, "rule: expected 'paper' or 'release', got 'mmdet'"),
    (
        location_targets,
        (torch.zeros(3, 4), [(4, 4)], [1e308]),
        {},
        r"sigma: expected a .* sigma \* strides\[0\], got inf",
    ),
    (viou_match, ONE_LEVEL, {"low_quality_from": -0.1}, r"low_quality_from: expected None or a number in \[0, 1\]"),
    (
        iou_match,
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        {"low_quality_from": math.nan},
        r"low_quality_from: expected None or a number in \[0, 1\], got nan",
    ),
]


@pytest.mark.parametrize("function, args, kwargs, message", BAD_CALLS)
def test_bad_arguments_are_named(function, args, kwargs, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        function(*args, **kwargs)


BIG = 2**63 - 1
ONE_BOX = torch.tensor([[1.0, 2.0, 20.0, 30.0]])
LEVEL = [4], [4], [8.0]
WILD_COUNTS = [[BIG, BIG, 3], [BIG, -BIG, 1], [2**62] * 4 + [1], [-1, 2, 0], [1, 0, 2], [BIG, 2, BIG], [0, 0, 0]]


@pytest.mark.parametrize("counts", WILD_COUNTS)
def test_counts_that_do_not_add_up(counts):
    """Their sum in 64 bits does, for some of them: through the raw operators, whose counts Python has not made."""
    ops, boxes = torch.ops.ga_scope, (ONE_BOX, counts)
    none = ONE_BOX[:0], [0] * len(counts)
    one = ONE_BOX, [1] + [0] * (len(counts) - 1)
    calls = [
        ("viou_match", "gt_counts", (*boxes, *none, *LEVEL, None, None, 0.5, 0.0, 0.0)),
        ("viou_match", "ignore_counts", (*one, *boxes, *LEVEL, None, None, 0.5, 0.0, 0.0)),
        ("iou_match", "counts", (*boxes, *one, *none, 0.5, 0.0)),
        ("iou_match", "gt_counts", (*one, *boxes, *none, 0.5, 0.0)),
        ("iou_match", "ignore_counts", (*one, *one, *boxes, 0.5, 0.0)),
        ("location_targets", "gt_counts", (*boxes, *none, *LEVEL, 8.0, 0.2, 0.5, 0.5, False)),
        ("location_targets", "ignore_counts", (*one, *boxes, *LEVEL, 8.0, 0.2, 0.5, 0.5, True)),
    ]
    for name, argument, arguments in calls:
        with pytest.raises(
            RuntimeError, match=f"{name}: {argument}: expected counts that add up to 1, got .*{counts[0]}"
        ):
            getattr(ops, name)(*arguments)


def test_more_locations_than_can_be_counted():
    """Each level's, all levels', and all images' together."""
    ops, images = torch.ops.ga_scope, 2**14
    empty = ONE_BOX[:0], [0] * images
    for sizes in (([2**30 - 1], [2**30 - 1], [8.0]), ([2**20] * 3, [2**19] * 3, [8.0] * 3), ([2**13], [2**13], [8.0])):
        with pytest.raises(RuntimeError, match="viou_match: level_sizes: expected fewer than 2.40 locations"):
            ops.viou_match(*empty, *empty, *sizes, None, None, 0.5, 0.0, 0.0)
        with pytest.raises(RuntimeError, match="location_targets: level_sizes: expected fewer than 2.40 locations"):
            ops.location_targets(*empty, *empty, *sizes, 8.0, 0.2, 0.5, 0.5, False)
    shapes = torch.ones(1, 1, 1).expand(1, 2**45, 2)
    with pytest.raises(RuntimeError, match="viou_match: shapes: expected fewer than 2.40 shapes, got 35184372088832"):
        ops.viou_match(ONE_BOX, [1], ONE_BOX[:0], [0], *LEVEL, shapes, None, 0.5, 0.0, 0.0)
