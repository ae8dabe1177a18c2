"""What each dtype promises, and that results repeat: from run to run and on any number of threads."""

import pytest
import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, viou_match

from .cases import random_boxes, random_convolution, random_locations

# Largest error over the largest number of the float64 result, with sums of up to 9 * 20 products of unit normals.
# Products are summed in float32 (float64 in float64) and rounded once: the table is the rounding of the result.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def calls(case, locations, dtype):
    """The two convolutions of the same arguments, rounded to dtype, as functions of leaves of any wider dtype."""
    maps = [m.to(dtype) for m in case.maps]
    weight = case.weight.to(dtype)
    offset = torch.randn(len(locations), 2 * case.offset_groups * case.taps, dtype=torch.float32)
    mask = torch.rand(len(locations), case.offset_groups * case.taps, dtype=torch.float32)
    if dtype == torch.float64:
        offset, mask = offset.double(), mask.double()

    def deformed(*leaves):
        *maps, weight, offset, mask = leaves
        return deform_conv2d(list(maps), offset, weight, **case.settings, mask=mask, locations=locations)

    def masked(*leaves):
        *maps, weight = leaves
        return masked_conv2d(list(maps), weight, **case.settings, groups=case.groups, locations=locations)

    return {"deform_conv2d": (deformed, (*maps, weight, offset, mask)), "masked_conv2d": (masked, (*maps, weight))}


def repeated_calls():
    """Every operator and form as a function without arguments that gives its results and all its gradients."""
    case = random_convolution(images=2, levels=3, dtype=torch.float32, square=True)
    locations = random_locations(case.locations, "repeated")
    of_dtype = calls(case, locations, torch.float32)
    grad = torch.randn(len(locations), len(case.weight))
    columns = 2 * case.offset_groups * case.taps
    dense_offset = [torch.randn(2, columns, *size) for size in case.sizes]
    shape, matrix, bias = torch.randn(len(locations), 2), torch.randn(columns, 2), torch.randn(len(case.weight))
    levels = len(case.maps)

    def dense(*leaves):
        maps, offsets, (weight, bias) = leaves[:levels], leaves[levels:-2], leaves[-2:]
        out = deform_conv2d(list(maps), list(offsets), weight, bias, **case.settings)
        return torch.cat([level.flatten(2) for level in out], 2)

    def affine(*leaves):
        *maps, weight, shape, matrix = leaves
        return deform_conv2d(maps, shape, weight, **case.settings, locations=locations, offset_weight=matrix)

    forms = {name: (*call, grad) for name, call in of_dtype.items()}
    leaves = (*case.maps, *dense_offset, case.weight, bias)
    forms["deform_conv2d, dense"] = dense, leaves, torch.randn_like(dense(*leaves))
    forms["deform_conv2d, affine"] = affine, (*case.maps, case.weight, shape, matrix), grad

    boxes = random_boxes(60, (300, 300))
    boxes = torch.cat([boxes, boxes])  # every box twice: ties everywhere
    anchors, sizes, strides = random_boxes(3000, (300, 300)), [(60, 60), (30, 30)], [5, 10]
    shapes = torch.rand(2, 5, 2, dtype=torch.float64) * 60
    matching = {
        "viou_match": lambda: viou_match(boxes, sizes, strides, ignore_boxes=boxes[:9]),
        "viou_match, sampled": lambda: viou_match(boxes, sizes, strides, shapes=shapes, min_iou=0.3),
        "iou_match": lambda: iou_match(anchors, boxes, ignore_boxes=boxes[:9]),
        "location_targets": lambda: [location_targets([boxes, boxes[:7]], sizes, strides)],
    }
    return matching | {name: lambda call=call: with_gradients(*call) for name, call in forms.items()}


OPERATORS = (
    "deform_conv2d", "deform_conv2d, dense", "deform_conv2d, affine", "masked_conv2d",
    "viou_match", "viou_match, sampled", "iou_match", "location_targets",
)  # fmt: skip


def with_gradients(function, leaves, grad):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("operator", ["deform_conv2d", "masked_conv2d"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("trial", range(3))
def test_every_dtype_keeps_its_tolerance(operator, dtype, trial):
    """Results and all gradients against float64 of the same rounded arguments."""
    case = random_convolution(images=2, levels=2)
    locations = random_locations(case.locations, "shuffled")
    function, leaves = calls(case, locations, dtype)[operator]
    grad = torch.randn(len(locations), len(case.weight)).to(dtype)
    narrow = with_gradients(function, leaves, grad)
    wide = with_gradients(function, [leaf.double() for leaf in leaves], grad)
    for ours, exact in zip(narrow, wide):
        # Gradients of several locations add up in the accumulator's precision and are rounded once, too.
        error = (ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
        assert error <= (TOLERANCES[dtype] if ours.dtype == dtype else TOLERANCES[torch.float32]), error


@pytest.mark.parametrize("operator", OPERATORS)
def test_twenty_runs_are_equal_bit_for_bit(operator, deterministic):
    call = repeated_calls()[operator]
    first = call()
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, call(), strict=True))


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_two_and_four_threads_agree(operator):
    call = repeated_calls()[operator]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
