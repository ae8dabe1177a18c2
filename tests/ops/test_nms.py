"""nms_mask against the definition and against torchvision."""

import pytest
import torch

from ga_scope.ops import nms_mask, reference


def scene(batch, count, dtype=torch.float32, crowd=3.0):
    """Random boxes (batch, count, 4) on an image of 100 x 100; some without area, some with a NaN."""
    corner = torch.rand(batch, count, 2, dtype=dtype) * 100 / crowd
    boxes = torch.cat([corner, corner + torch.rand(batch, count, 2, dtype=dtype) * 60], -1)
    if count > 8:
        boxes[:, 3, 2:] = boxes[:, 3, :2]
        boxes[:, 5] = float("nan")
        boxes[:, 7] = boxes[:, 6]
    return boxes


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 130, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(count, dtype, device):
    boxes = scene(3, count, dtype)
    groups, valid = torch.randint(3, (3, count)), torch.rand(3, count) < 0.9
    for threshold in (0.0, 0.3, 0.7, 1.0):
        found = nms_mask(boxes, threshold, groups=groups, valid=valid)
        assert found.shape == (3, count) and found.dtype == torch.bool and found.device == boxes.device
        for b in range(3):
            expected = reference.nms_mask(boxes[b].cpu(), threshold, groups[b].tolist(), valid[b].tolist())
            assert torch.equal(found[b].cpu(), expected)


@pytest.mark.parametrize("count", [5, 200, 1000])
def test_equals_torchvision(count, device):
    torchvision = pytest.importorskip("torchvision")
    boxes = scene(2, count)
    for threshold in (0.5, 0.7):
        kept = nms_mask(boxes, threshold)
        for b in range(2):
            theirs = torchvision.ops.nms(boxes[b], torch.arange(count, 0, -1.0), threshold)
            assert torch.equal(kept[b].nonzero()[:, 0], theirs.sort().values)


@pytest.mark.parametrize("count, groups", [(1000, 1), (2000, 5), (3000, 80)])
def test_groups_equal_torchvision_group_by_group(count, groups, device):
    """Corners on a grid, so that many pairs lie exactly at the threshold; group ids from all of int64."""
    torchvision = pytest.importorskip("torchvision")
    corner = torch.randint(60, (1, count, 2)).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 12, (1, count, 2))], -1)
    ids = torch.cat([torch.randint(-(2**62), 2**62, (groups - 1,)), torch.tensor([-(2**63)])])
    group = ids[torch.randint(groups, (1, count))]
    kept = nms_mask(boxes, 0.5, groups=group)[0]
    for value in ids:
        members = (group[0] == value).nonzero()[:, 0]
        theirs = torchvision.ops.nms(boxes[0, members], torch.arange(len(members), 0, -1.0), 0.5)
        assert torch.equal(kept[members].nonzero()[:, 0], theirs.sort().values)


def test_infinite_and_huge_boxes(device):
    inf, huge = float("inf"), 3e38
    boxes = torch.tensor([[-inf, -inf, inf, inf], [0, 0, inf, 1], [-huge, 0, huge, 1], [0, 0, 10, 10], [0, 0, 10, 10]])
    expected = reference.nms_mask(boxes.cpu(), 0.5, [0] * 5, [True] * 5)
    assert torch.equal(nms_mask(boxes[None], 0.5)[0].cpu(), expected)


def test_a_chain(device):
    """Each box overlaps the next too much, and only that: every other one survives, over many tiles."""
    x = torch.arange(500.0) * 4
    boxes = torch.stack([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], 1)[None]  # IoU 6 / 14 and 2 / 18
    assert torch.equal(nms_mask(boxes, 0.4)[0], torch.arange(500) % 2 == 0)


def test_invalid_boxes_do_not_suppress(device):
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    valid = torch.tensor([[False, True, True]])
    assert nms_mask(boxes, 0.5, valid=valid).tolist() == [[False, True, False]]


def test_layouts(device):
    """Strided and expanded arguments."""
    boxes = scene(2, 70)
    groups, valid = torch.randint(2, (70, 2)).T, torch.ones((), dtype=torch.bool).expand(2, 70)
    strided = torch.stack([boxes, boxes], -1)[..., 0]
    assert not strided.is_contiguous()
    expected = nms_mask(boxes, 0.4, groups=groups.contiguous(), valid=valid.contiguous())
    assert torch.equal(nms_mask(strided, 0.4, groups=groups, valid=valid), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": torch.zeros(5, 4)}, r"nms_mask: boxes: expected a 3-D tensor, got shape \[5, 4\]"),
        ({"boxes": torch.zeros(1, 5, 3)}, r"boxes: expected shape \[B, K, 4\], got \[1, 5, 3\]"),
        ({"boxes": torch.zeros(1, 5, 4, dtype=torch.int64)}, "boxes: expected dtype Float or Double, got Long"),
        ({"groups": torch.zeros(1, 4, dtype=torch.int64)}, r"groups: expected shape \[1, 5\], got \[1, 4\]"),
        ({"groups": torch.zeros(1, 5)}, "groups: expected dtype Long, got Float"),
        ({"valid": torch.zeros(1, 5)}, "valid: expected dtype Bool, got Float"),
        ({"iou_threshold": 1.5}, r"iou_threshold: expected a number in \[0, 1\], got 1.5"),
        ({"iou_threshold": float("nan")}, "iou_threshold: expected a number"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"boxes": torch.zeros(1, 5, 4), "iou_threshold": 0.5} | change
    with pytest.raises(RuntimeError, match=message):
        nms_mask(**arguments)
