"""Which kernels run, and what only the simulated grid can show. Run in the stand-in (../conftest.py)."""

import random

import pytest
import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, reference, viou_match

OPS = torch.ops.ga_scope
LARGE, SMALL = 227 << 10, 99 << 10  # shared memory of a block: sm_90, sm_86


def launched():
    return OPS.simulated_launches().split()


@pytest.fixture
def device():
    """Sets the device's multiprocessors and shared memory for a test."""
    yield OPS.simulated_device
    OPS.simulated_device(2, LARGE)


@pytest.mark.parametrize(
    "dtype, channels, offset_groups, rows, tf32, expected",
    [
        (torch.bfloat16, 64, 1, 60, False, "fused_convolution_64"),
        (torch.bfloat16, 128, 2, 300, False, "fused_convolution_128"),
        (torch.float16, 64, 1, 300, False, "fused_convolution_128"),
        (torch.float32, 32, 1, 300, True, "fused_convolution_128"),
        (torch.float32, 32, 1, 300, False, "store_rows"),  # full float32
        (torch.float64, 64, 1, 300, True, "store_rows"),
        (torch.bfloat16, 96, 1, 70, False, "store_rows"),  # not whole chunks of channels
        (torch.bfloat16, 128, 4, 70, False, "store_rows"),  # nor of an offset group's
    ],
)
def test_the_rule_that_chooses(dtype, channels, offset_groups, rows, tf32, expected, device):
    device(1, LARGE)
    x, weight = torch.randn(1, channels, 9, 40, dtype=dtype), torch.randn(8, channels, 3, 3, dtype=dtype)
    offset = torch.randn(rows, 18 * offset_groups, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    launched()
    OPS.deform_conv2d(
        [x], [offset], weight, None, [], None, torch.arange(rows), [1, 1], [1, 1], [1, 1], 1, offset_groups, tf32
    )
    assert launched()[-1] == expected


@pytest.mark.parametrize(
    "processors, shared, rows, expected",
    [
        (3, LARGE, 300, ["fused_convolution_128"]),  # one full wave of tall tiles
        (5, LARGE, 300, ["fused_convolution_64"]),  # of low ones
        (3, SMALL, 300, ["fused_convolution_64"]),  # there is no room for tall ones
        (40, LARGE, 70, ["fused_convolution_64", "store_rows"]),  # few rows: the depth in parts
    ],
)
def test_tiles_fill_the_device(processors, shared, rows, expected, device):
    """And whatever they are, they give the same numbers."""
    torch.manual_seed(1)
    x, weight = torch.randn(1, 128, 9, 40).bfloat16(), torch.randn(8, 128, 3, 3).bfloat16() / 34
    arguments = [x], weight, torch.randn(8).bfloat16(), torch.arange(rows), [1, 1], [1, 1], [1, 1], 1, False
    reference = OPS.masked_conv2d(*arguments)
    device(processors, shared)
    launched()
    found = OPS.masked_conv2d(*arguments)
    assert launched() == ["pack_weight", *expected]
    torch.testing.assert_close(found, reference, rtol=1e-2, atol=1e-2)


def test_division_by_multiplication():
    """Every number below 4 divisors and around powers of two, and large ones at random."""
    random.seed(0)
    divisors = [1, 2, 3, 5, 7, 9, 36, 89523, 2**31 - 1, 2**31, 2**40 - 1, 2**62 - 1]
    divisors += [random.randrange(1, 2 ** random.randrange(1, 63)) for _ in range(200)]
    for divisor in divisors:
        multiples = [divisor * random.randrange(2**62 // divisor + 1) for _ in range(20)]
        numbers = [0, 1, divisor - 1, divisor, divisor + 1, 2**62 - 1, *range(min(4 * divisor, 50))]
        numbers += [n + step for n in multiples for step in (-1, 0, 1)]
        numbers += [2**power + step for power in range(61) for step in (-1, 0, 1)]
        numbers = [n for n in numbers if 0 <= n < 2**62]
        assert OPS.simulated_divide(numbers, divisor) == [n // divisor for n in numbers], divisor


def test_all_levels_in_one_launch():
    maps = [torch.randn(2, 64, size, size).bfloat16() for size in (12, 6, 3, 2, 1)]
    offsets = [torch.randn(2, 18, *m.shape[2:]) for m in maps]
    launched()
    weight = torch.randn(8, 64, 3, 3).bfloat16()
    copied = deform_conv2d(maps, offsets, weight, padding=1)
    assert launched() == ["pack_weight", "fused_convolution_128"]
    # A weight in channels_last is used as it lies.
    in_place = deform_conv2d(maps, offsets, weight.to(memory_format=torch.channels_last), padding=1)
    assert launched() == ["fused_convolution_128"]
    assert all(torch.equal(a, b) for a, b in zip(copied, in_place))
    viou_match(torch.rand(5, 4).cumsum(1), [(12, 12), (6, 6)], [8, 16])
    assert launched() == ["match", "store_best", "mark_best"]
    viou_match(torch.rand(5, 4).cumsum(1), [(12, 12), (6, 6)], [8, 16], low_quality_from=None)
    assert launched() == ["match", "store_best"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_pixels(dtype):
    """Off the map nothing is read, however the kernels write that: one that is infinite counts where it is sampled."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 6, 7).to(dtype), torch.randn(4, 64, 3, 3).to(dtype) / 24
    x[0, 3, 0, 2], x[0, 9, 5, 0], x[0, 20, 3, 6], x[0, 40, 0, 0] = torch.inf, -torch.inf, torch.nan, torch.inf
    offset = torch.randn(1, 18, 6, 7) * 2
    offset[0, ::5] = offset[0, ::5].round()  # weights of zero, and y = -1
    found = deform_conv2d(x, offset, weight, padding=1).permute(0, 2, 3, 1).flatten(0, 2).float()
    rows = offset.permute(0, 2, 3, 1).flatten(0, 2)
    expected = reference.deform_conv2d([x.float()], rows, weight.float(), padding=(1, 1))
    assert not expected.isfinite().all() and expected.isfinite().any()
    assert torch.equal(found.isfinite(), expected.isfinite())
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_many_images_and_boxes():
    """More images than one launch holds, more boxes than a tile."""
    boxes = [torch.rand(i % 40, 4).cumsum(1) * 30 for i in range(150)]
    anchors = [torch.rand(3 + i % 5, 4).cumsum(1) * 30 for i in range(150)]
    crowds = [b[:i] for i, b in zip(range(150), reversed(boxes))]
    single = [iou_match([a], [b], ignore_boxes=[c]) for a, b, c in zip(anchors, boxes, crowds)]
    whole = iou_match(anchors, boxes, ignore_boxes=crowds)
    assert torch.equal(whole.iou, torch.cat([m.iou for m in single]))
    assert torch.equal(whole.gt_iou, torch.cat([m.gt_iou for m in single]))
    assert torch.equal(whole.ignored, torch.cat([m.ignored for m in single])) and whole.ignored.any()
    first_box = torch.tensor([len(b) for b in boxes]).cumsum(0) - torch.tensor([len(b) for b in boxes])
    best_for = torch.cat([torch.where(m.best_for < 0, -1, m.best_for + i) for m, i in zip(single, first_box)])
    assert torch.equal(whole.best_for, best_for) and (best_for >= 0).any()
    levels = [(4, 5), (2, 3)], [8, 16]
    for rule in ("paper", "release"):
        labels = torch.cat([location_targets([b], *levels, rule=rule, ignore_boxes=[c]) for b, c in zip(boxes, crowds)])
        assert torch.equal(location_targets(boxes, *levels, rule=rule, ignore_boxes=crowds), labels)


def gradients(deterministic):
    torch.manual_seed(0)
    maps = [torch.randn(2, 6, *size, requires_grad=True) for size in ((9, 11), (4, 5))]
    weight, matrix = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(54, 2, requires_grad=True)
    locations = torch.randint(2 * (99 + 20), (700,))
    shape, mask = torch.randn(700, 2, requires_grad=True), torch.rand(700, 27, requires_grad=True)
    out = deform_conv2d(maps, shape, weight, padding=1, mask=mask, locations=locations, offset_weight=matrix)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    launched()
    grads = torch.autograd.grad(out, (*maps, weight, matrix, shape, mask), torch.randn_like(out))
    return grads, launched()


def test_deterministic_backward(deterministic):
    """The simulated grid adds in another order each time, as a GPU's atomics do; sorted sums do not care."""
    (first, names), (second, _), (free, free_names) = gradients(True), gradients(True), gradients(False)
    assert "sum_sorted" in names and "sum_sorted" not in free_names
    assert names.count("gather_columns") > 1, "several chunks"
    for a, b, c in zip(first, second, free):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [-1, 72, 2**40])
def test_bad_locations_are_caught(bad):
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3)
    with pytest.raises(RuntimeError, match="locations: expected values in"):
        masked_conv2d(x, weight, padding=1, locations=torch.tensor([0, bad]))


def test_more_levels_than_the_kernels_hold():
    maps = [torch.randn(1, 4, 3, 3)] * 9
    with pytest.raises(RuntimeError, match="at most 8 levels on CUDA, got 9"):
        masked_conv2d(maps, torch.randn(2, 4, 3, 3), padding=1, locations=torch.tensor([0]))


def test_boxes_of_two_launches():
    launched()
    nms_mask(torch.rand(3, 100, 4), 0.5)
    assert launched() == ["nms_pairs", "nms_sweep"]


def test_more_boxes_than_the_sweep_holds():
    with pytest.raises(RuntimeError, match="at most 65536 boxes per entry on CUDA, got 65537"):
        nms_mask(torch.zeros(1, 65537, 4), 0.5)
