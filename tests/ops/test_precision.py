"""What each dtype promises, and that results repeat: from run to run and on any number of threads."""

import pytest
import torch

from ga_scope.ops import deform_conv2d, masked_conv2d

from .cases import random_convolution, random_locations

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


@pytest.mark.parametrize("operator", ["deform_conv2d", "masked_conv2d"])
def test_twenty_runs_are_equal_bit_for_bit(operator, deterministic):
    case = random_convolution(images=2, levels=3, dtype=torch.float32, square=True)
    locations = random_locations(case.locations, "repeated")
    function, leaves = calls(case, locations, torch.float32)[operator]
    grad = torch.randn(len(locations), len(case.weight))
    first = with_gradients(function, leaves, grad)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, with_gradients(function, leaves, grad)))


@pytest.mark.parametrize("operator", ["deform_conv2d", "masked_conv2d"])
def test_one_two_and_four_threads_agree(operator):
    case = random_convolution(images=3, levels=3, dtype=torch.float32)
    locations = random_locations(case.locations, "repeated")
    function, leaves = calls(case, locations, torch.float32)[operator]
    grad = torch.randn(len(locations), len(case.weight))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(with_gradients(function, leaves, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
