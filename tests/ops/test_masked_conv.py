"""masked_conv2d against the dense convolution."""

import pytest
import torch
from torch.autograd import gradcheck

from ga_scope.ops import MaskedConv2d, masked_conv2d, reference

from .cases import random_convolution, random_locations


def settings_of(case):
    return dict(**case.settings, groups=case.groups)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("trial", range(40))
def test_rows_equal_the_dense_convolution(trial):
    case = random_convolution()
    locations = random_locations(case.locations)
    leaves = [t.requires_grad_() for t in (*case.maps, case.weight, case.bias) if t is not None]
    out = masked_conv2d(case.maps, case.weight, case.bias, **settings_of(case), locations=locations)
    expected = reference.masked_conv2d(case.maps, case.weight, case.bias, locations, **settings_of(case))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(out)
    ours, theirs = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_mask_and_dense_output(images, fraction):
    for _ in range(4):
        case = random_convolution(images=images)
        masks = [torch.rand(images, *size) < fraction for size in case.sizes]
        dense = masked_conv2d(case.maps, case.weight, case.bias, **settings_of(case), mask=masks, dense=True)
        rows = masked_conv2d(case.maps, case.weight, case.bias, **settings_of(case), mask=masks)
        assert rows.shape == (sum(int(m.sum()) for m in masks), len(case.weight))
        for out, x, mask in zip(dense, case.maps, masks):
            expected = torch.nn.functional.conv2d(x, case.weight, case.bias, **settings_of(case))
            torch.testing.assert_close(out, expected * mask[:, None], rtol=1e-10, atol=1e-10)
            channels_last = x.shape[1] > 1 and x.stride(1) == 1
            assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_large_map_in_pieces(fraction):
    """A channels-first map is read in place where few rows need it, else, and for its gradient, in blocks of
    channels; same numbers."""
    x, weight = torch.randn(1, 96, 220, 260), torch.randn(40, 48, 3, 3) / 20
    locations = (torch.rand(220 * 260) < fraction).nonzero()[:, 0]
    grad, results = torch.randn(len(locations), 40), []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=layout), weight)]
        out = masked_conv2d(*leaves, padding=1, groups=2, locations=locations)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, grad)))
    expected = torch.nn.functional.conv2d(x, weight, padding=1, groups=2).flatten(2)[0, :, locations].T
    torch.testing.assert_close(results[0][0], expected, rtol=2e-4, atol=2e-4)
    for piecewise, whole in zip(*results):
        torch.testing.assert_close(piecewise, whole, rtol=2e-4, atol=2e-4 * float(whole.abs().max()))


@pytest.mark.usefixtures("device", "deterministic")
def test_gradcheck():
    for _ in range(4):
        case = random_convolution(images=2)
        locations = random_locations(case.locations, "repeated")[:9]
        leaves = [t.requires_grad_() for t in (*case.maps, case.weight, case.bias) if t is not None]

        def run(*leaves, case=case, locations=locations):
            maps, (weight, *bias) = leaves[: len(case.maps)], leaves[len(case.maps) :]
            bias = bias[0] if bias else None
            return masked_conv2d(list(maps), weight, bias, **settings_of(case), locations=locations)

        assert gradcheck(run, leaves)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_dtypes(dtype, tolerance):
    case = random_convolution(images=2, levels=2)
    maps, weight = [m.to(dtype) for m in case.maps], case.weight.to(dtype)
    locations = random_locations(case.locations, "shuffled")
    leaves = [t.requires_grad_() for t in (*maps, weight)]
    out = masked_conv2d(maps, weight, **settings_of(case), locations=locations)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = masked_conv2d(wide[:-1], wide[-1], **settings_of(case), locations=locations)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(ours, torch.autograd.grad(expected, wide, grad.double())):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=2 * tolerance, atol=2 * tolerance * float(b.abs().max() + 1))


def test_module_is_a_conv2d():
    module = MaskedConv2d(6, 4, 3, stride=2, padding=1)
    plain = torch.nn.Conv2d(6, 4, 3, stride=2, padding=1)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 6, 9, 8)
    torch.testing.assert_close(module(x), plain(x))
    mask = torch.rand(2, 5, 4) < 0.5
    torch.testing.assert_close(module(x, mask, dense=True), plain(x) * mask[:, None])
    torch.testing.assert_close(module([x, x[:, :, :5]])[1], plain(x[:, :, :5]))
    with pytest.raises(ValueError, match="padding: expected numbers"):
        MaskedConv2d(6, 4, 3, padding="same")


@pytest.mark.usefixtures("device")
def test_repeated_locations_of_a_dense_output_count_once():
    """The map has each value once, however often its location is listed: so have the gradients."""
    x, weight = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    bias, grad = torch.randn(3, requires_grad=True), torch.randn(1, 3, 5, 5)
    once, repeated = torch.tensor([3, 7, 12, 20]), torch.tensor([7, 3, 7, 20, 12, 7, 20])
    results = []
    for locations in (once, repeated):
        out = masked_conv2d(x, weight, bias, padding=1, locations=locations, dense=True)
        results.append([out, *torch.autograd.grad(out, (x, weight, bias), grad)])
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("device")
def test_backward_within_autocast(device):
    leaves = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)
    out = masked_conv2d(*leaves, locations=torch.arange(9))
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(out, leaves, grad), expected)


def test_autocast_and_double_backward():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    weight = torch.randn(2, 4, 3, 3, requires_grad=True)
    every = torch.arange(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked_conv2d(x, weight, locations=every).dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(masked_conv2d(x, weight, locations=every).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


X, W = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3)
BAD_CALLS = [
    (dict(), "mask, locations: expected exactly one"),
    (dict(mask=torch.ones(2, 4, 4, dtype=torch.bool), locations=torch.tensor([0])), "expected exactly one"),
    (dict(mask=torch.ones(2, 4, 5, dtype=torch.bool)), r"mask: expected bool of shape \[2, 4, 4\]"),
    (dict(mask=torch.ones(2, 4, 4)), r"mask: expected bool .* got torch.float32"),
    (dict(locations=torch.tensor([32])), r"locations: expected values in \[0, 32\), got 32 at 0"),
    (dict(locations=torch.tensor([[0]])), r"locations: expected a 1-D tensor"),
    (dict(locations=torch.tensor([0]), groups=3), r"weight: expected shape \[C_out, 4 / groups"),
    (dict(locations=torch.tensor([0]), input=[X, X[:1]]), r"input: expected every level of shape \[2, 4, H, W\]"),
    (dict(locations=torch.tensor([0]), bias=torch.zeros(3).double()), r"bias: expected dtype Float"),
]


@pytest.mark.parametrize("change, message", BAD_CALLS)
def test_bad_arguments_are_named(change, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        masked_conv2d(**(dict(input=X, weight=W) | change))


@pytest.mark.usefixtures("device")
def test_random_order_does_not_matter():
    case = random_convolution(images=2, levels=3)
    order = torch.randperm(case.locations)
    a = masked_conv2d(case.maps, case.weight, **settings_of(case), locations=torch.arange(case.locations))
    b = masked_conv2d(case.maps, case.weight, **settings_of(case), locations=order)
    assert torch.equal(a[order], b)
