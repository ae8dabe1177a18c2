"""ROIAlign's gradient against torchvision's, and against what a gradient is."""

import math

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from ga_scope.modeling.roi_align import roi_align

BACKWARD = torch.ops.ga_scope.roi_align_backward


def scene(count, size, images, dtype=torch.float64):
    """Boxes within, across and beyond the picture; thin, empty and turned ones among them."""
    height, width = size
    centers = (torch.rand(count, 2) * 1.6 - 0.3) * torch.tensor([width, height])
    sides = torch.exp(torch.randn(count, 2)) * 0.3 * torch.tensor([width, height])
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    boxes[0::7, 2] = boxes[0::7, 0]
    boxes[3::11] = boxes[3::11].flip(1)
    boxes[5::13] *= 20
    return boxes.to(dtype), torch.randint(images, (count,))


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 7), (40, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_is_torchvisions(dtype, size, sampling_ratio):
    torch.manual_seed(sampling_ratio + 10 * size[0])
    boxes, images = scene(60, (size[0] * 8, size[1] * 8), 3, dtype)
    maps = torch.randn(3, 11, *size, dtype=dtype)
    grad = torch.randn(60, 11, 5, 5, dtype=dtype)

    def gradient(pool):
        leaf = maps.clone().requires_grad_()
        pooled = pool(leaf)
        pooled.backward(grad)
        return pooled.detach(), leaf.grad

    pooled, ours = gradient(lambda leaf: roi_align(leaf, boxes, images, 5, 1 / 8, sampling_ratio))
    rois = torch.cat([images[:, None].to(dtype), boxes], 1)
    same, theirs = gradient(lambda leaf: torchvision_roi_align(leaf, rois, 5, 1 / 8, sampling_ratio, aligned=True))
    assert torch.equal(pooled, same)
    assert theirs.abs().max() > 1
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_gradient_is_the_adjoint_of_pooling():
    # <grad, pool(x)> = <gradient, x> for every x, since pooling is linear.
    torch.manual_seed(0)
    boxes, images = scene(40, (160, 120), 2)
    grad = torch.randn(40, 3, 7, 7, dtype=torch.float64)
    gradient = BACKWARD(grad, boxes, images, 0.25, 2, 2, 40, 30)
    for _ in range(5):
        maps = torch.randn(2, 3, 40, 30, dtype=torch.float64)
        pooled = roi_align(maps, boxes, images, 7, 0.25, 2)
        assert math.isclose(float((grad * pooled).sum()), float((gradient * maps).sum()), rel_tol=1e-9, abs_tol=1e-8)


def test_layouts_and_threads_change_nothing():
    boxes, images = scene(100, (160, 120), 2, torch.float32)
    grad = torch.randn(100, 19, 7, 7)
    arguments = boxes, images, 0.25, 2, 2, 40, 30
    expected = BACKWARD(grad, *arguments)
    assert torch.equal(BACKWARD(grad.contiguous(memory_format=torch.channels_last), *arguments), expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(BACKWARD(grad, *arguments), expected)
    finally:
        torch.set_num_threads(threads)


def test_no_boxes_and_boxes_that_are_not_finite_give_no_gradient():
    none = BACKWARD(torch.ones(0, 4, 7, 7), torch.ones(0, 4), torch.ones(0, dtype=torch.int64), 0.25, 2, 2, 8, 9)
    assert none.shape == (2, 4, 8, 9) and not none.any()
    boxes = torch.tensor([[0, 0, math.nan, 8], [0, 0, math.inf, 8], [-math.inf, 0, 8, 8]])
    for sampling_ratio in (0, 2):
        arguments = torch.zeros(3, dtype=torch.int64), 0.25, sampling_ratio, 1, 8, 9
        assert not BACKWARD(torch.ones(3, 4, 7, 7), boxes, *arguments).any()


def test_operator_is_a_citizen_of_torch():
    boxes, images = scene(6, (64, 72), 2)
    torch.library.opcheck(BACKWARD, (torch.randn(6, 3, 7, 7).double(), boxes, images, 0.125, 2, 2, 8, 9))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("grad_output", torch.ones(2, 4, 7), "grad_output: expected a 4-D tensor, got shape [2, 4, 7]"),
        ("grad_output", torch.ones(2, 4, 7, 7).half(), "grad_output: expected float32 or float64, got Half"),
        ("boxes", torch.ones(3, 4), "boxes: expected shape [2, 4], got [3, 4]"),
        ("boxes", torch.ones(2, 4).double(), "boxes: expected dtype Float, got Double"),
        ("boxes", torch.tensor([[0, 0, 1e9, 9], [0, 0, 9, 9]]), "boxes: expected at most 65536 cells for a bin, got "
         "larger at 0"),
        ("images", torch.ones(2), "images: expected dtype Long, got Float"),
        ("images", torch.tensor([0, 3]), "images: expected numbers from 0 to 2, got 3"),
        ("images", torch.tensor([-1, 0]), "images: expected numbers from 0 to 2, got -1"),
        ("sampling_ratio", 2**40, "sampling_ratio: expected at most 65536, got 1099511627776"),
        ("num_images", -1, "num_images: expected at least 0, got -1"),
        ("height", 0, "height: expected above 0, got 0"),
        ("width", 2**62, "expected a map of fewer than 2^40 numbers"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name, value, message):
    arguments = {
        "grad_output": torch.ones(2, 4, 7, 7),
        "boxes": torch.tensor([[0.0, 0, 9, 9], [1, 1, 5, 6]]),
        "images": torch.tensor([0, 2]),
        "scale": 0.25,
        "sampling_ratio": 0,
        "num_images": 3,
        "height": 8,
        "width": 9,
    }
    BACKWARD(**arguments)
    with pytest.raises(RuntimeError) as error:
        BACKWARD(**arguments | {name: value})
    assert message in str(error.value)
