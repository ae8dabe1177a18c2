"""Which kernels run, and what only the simulated grid can show. Run in the stand-in (../conftest.py)."""

import pytest
import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match

OPS = torch.ops.ga_scope


def launched():
    return OPS.simulated_launches().split()


@pytest.mark.parametrize(
    "dtype, channels, offset_groups, rows, tf32, expected",
    [
        (torch.bfloat16, 64, 1, 70, False, "fused_convolution_64"),
        (torch.bfloat16, 128, 2, 300, False, "fused_convolution_128"),  # the simulated device has two processors
        (torch.float16, 64, 1, 300, False, "fused_convolution_128"),
        (torch.float32, 32, 1, 300, True, "fused_convolution_128"),
        (torch.float32, 32, 1, 300, False, "store_rows"),  # full float32
        (torch.float64, 64, 1, 300, True, "store_rows"),
        (torch.bfloat16, 96, 1, 70, False, "store_rows"),  # not whole chunks of channels
        (torch.bfloat16, 128, 4, 70, False, "store_rows"),  # nor of an offset group's
    ],
)
def test_the_rule_that_chooses(dtype, channels, offset_groups, rows, tf32, expected):
    x, weight = torch.randn(1, channels, 9, 40, dtype=dtype), torch.randn(8, channels, 3, 3, dtype=dtype)
    offset = torch.randn(rows, 18 * offset_groups, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    launched()
    OPS.deform_conv2d(
        [x], [offset], weight, None, [], None, torch.arange(rows), [1, 1], [1, 1], [1, 1], 1, offset_groups, tf32
    )
    assert launched()[-1] == expected


def test_all_levels_in_one_launch():
    maps = [torch.randn(2, 64, size, size).bfloat16() for size in (12, 6, 3, 2, 1)]
    offsets = [torch.randn(2, 18, *m.shape[2:]) for m in maps]
    launched()
    deform_conv2d(maps, offsets, torch.randn(8, 64, 3, 3).bfloat16(), padding=1)
    assert launched() == ["pack_weight", "fused_convolution_128"]
    viou_match(torch.rand(5, 4).cumsum(1), [(12, 12), (6, 6)], [8, 16])
    assert launched() == ["match", "store_best", "mark_best"]
    viou_match(torch.rand(5, 4).cumsum(1), [(12, 12), (6, 6)], [8, 16], low_quality_from=None)
    assert launched() == ["match", "store_best"]


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
