"""deform_conv2d against its definition, against torchvision, and under abuse."""

import math
import random

import pytest
import torch
from torch.autograd import gradcheck

from ga_scope.ops import DeformConv2d, box_offsets, deform_conv2d, reference

from .cases import random_convolution, random_locations


def rows_of(maps):
    """Dense (N, C, H, W) maps per level as (N * P, C) rows in location order."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], 1).flatten(0, 1)


def maps_of(rows, images, sizes):
    """The inverse of rows_of."""
    parts = rows.view(images, sum(h * w for h, w in sizes), -1).split([h * w for h, w in sizes], 1)
    return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, sizes)]


def random_positions(case, rows, modulated, dtype=torch.float64):
    offset = torch.randn(rows, 2 * case.offset_groups * case.taps, dtype=dtype) * random.choice([0.3, 2, 6])
    mask = torch.rand(rows, case.offset_groups * case.taps, dtype=dtype) if modulated else None
    return offset, mask


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("trial", range(40))
def test_locations_equal_the_definition(trial):
    case = random_convolution()
    locations = random_locations(case.locations)
    offset, mask = random_positions(case, len(locations), trial % 2)
    out = deform_conv2d(case.maps, offset, case.weight, case.bias, **case.settings, mask=mask, locations=locations)
    expected = reference.deform_conv2d(
        case.maps, offset, case.weight, case.bias, **case.settings, mask=mask, locations=locations
    )
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("trial", range(30))
def test_dense_equals_locations(trial):
    """Dense maps of a pyramid, whatever the layout, are the rows of all locations; so are their gradients."""
    case = random_convolution(images=random.choice([1, 3]))
    offset, mask = random_positions(case, case.locations, trial % 2)
    images, sizes = case.maps[0].shape[0], case.sizes
    leaves = [t.requires_grad_() for t in (*case.maps, case.weight, offset, mask, case.bias) if t is not None]

    def run(dense):
        if not dense:
            every = torch.arange(case.locations)
            return deform_conv2d(case.maps, offset, case.weight, case.bias, **case.settings, mask=mask, locations=every)
        maps = deform_conv2d(
            case.maps,
            maps_of(offset, images, sizes),
            case.weight,
            case.bias,
            **case.settings,
            mask=None if mask is None else maps_of(mask, images, sizes),
        )
        assert [m.shape for m in maps] == [(images, len(case.weight), *size) for size in sizes]
        return rows_of(maps)

    sparse, dense = run(False), run(True)
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(sparse)
    for a, b in zip(torch.autograd.grad(sparse, leaves, grad), torch.autograd.grad(dense, leaves, grad)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("trial", range(30))
def test_equals_torchvision(trial):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    case = random_convolution(images=random.choice([1, 2]), levels=1)
    offset, mask = random_positions(case, case.locations, trial % 2)
    images, sizes = case.maps[0].shape[0], case.sizes
    x = case.maps[0].requires_grad_()
    offset = maps_of(offset, images, sizes)[0].contiguous().requires_grad_()
    mask = maps_of(mask, images, sizes)[0].contiguous().requires_grad_() if mask is not None else None
    weight, bias = case.weight.requires_grad_(), case.bias
    leaves = [t for t in (x, offset, weight, mask, bias) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    args = (x, offset, weight, bias, *case.settings.values(), mask)
    ours, theirs = deform_conv2d(*args), torchvision.ops.deform_conv2d(*args)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dtypes(dtype, tolerance, layout):
    """Products are summed in float32 and rounded once; so the error is that of the rounded arguments."""
    case = random_convolution(images=2, levels=2, layout=layout, square=True)
    locations = random_locations(case.locations, "some")
    offset, mask = random_positions(case, len(locations), True)
    low = [m.to(dtype) for m in case.maps]
    weight = case.weight.to(dtype)
    out = deform_conv2d(low, offset.float(), weight, **case.settings, mask=mask.float(), locations=locations)
    assert out.dtype == dtype
    expected = deform_conv2d(
        [m.double() for m in low],
        offset.float().double(),
        weight.double(),
        **case.settings,
        mask=mask.float().double(),
        locations=locations,
    )
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("device")
def test_large_map_in_pieces():
    """A channels-first map above the scratch limit is transposed in blocks of channels; same numbers."""
    x = torch.randn(1, 96, 220, 260)
    weight = torch.randn(40, 48, 3, 3) / 20
    offset = torch.randn(1, 3 * 18, 220, 260)
    grad = torch.randn(1, 40, 220, 260)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=layout), offset, weight)]
        out = deform_conv2d(*leaves, padding=1)
        assert out.is_contiguous(memory_format=layout)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, grad)))
    for piecewise, whole in zip(*results):
        torch.testing.assert_close(piecewise, whole, rtol=2e-4, atol=2e-4 * float(whole.abs().max()))


@pytest.mark.usefixtures("device", "deterministic")
@pytest.mark.parametrize("sparse", [False, True])
def test_gradcheck(sparse):
    for _ in range(3):
        case = random_convolution(images=1, levels=2, square=False)
        locations = random_locations(case.locations, "repeated")[:7] if sparse else None
        count = len(locations) if sparse else case.locations
        offset, mask = random_positions(case, count, True)
        # Positions half-way between pixels: the sample is not differentiable at the pixels themselves.
        offset = torch.round(offset) + torch.empty_like(offset).uniform_(0.2, 0.8)
        leaves = [t.requires_grad_() for t in (*case.maps, offset, case.weight, mask, case.bias) if t is not None]

        def run(*leaves, case=case, locations=locations, sparse=sparse):
            maps, (offset, weight, mask, *bias) = leaves[: len(case.maps)], leaves[len(case.maps) :]
            if not sparse:
                offset, mask = (maps_of(t, 1, case.sizes) for t in (offset, mask))
            bias = bias[0] if bias else None
            return deform_conv2d(list(maps), offset, weight, bias, **case.settings, mask=mask, locations=locations)

        assert gradcheck(run, leaves)


@pytest.mark.usefixtures("device")
def test_offset_weight_equals_made_offsets():
    """Offsets on the fly from (dw, dh) are the offsets of a 1x1 convolution, gradients included."""
    for _ in range(5):
        case = random_convolution(images=2, square=True)
        locations = random_locations(case.locations, "repeated")
        shape = torch.randn(len(locations), 2, dtype=torch.float64)
        matrix = torch.randn(2 * case.offset_groups * 9, 2, dtype=torch.float64)
        leaves = [t.requires_grad_() for t in (*case.maps, shape, matrix, case.weight)]
        made = deform_conv2d(case.maps, shape, case.weight, **case.settings, locations=locations, offset_weight=matrix)
        given = deform_conv2d(case.maps, shape @ matrix.T, case.weight, **case.settings, locations=locations)
        torch.testing.assert_close(made, given, rtol=1e-12, atol=1e-12)
        grad = torch.randn_like(made)
        for a, b in zip(torch.autograd.grad(made, leaves, grad), torch.autograd.grad(given, leaves, grad)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e9, 3.4e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wild_offsets_sample_zero(bad, dtype):
    """Each bad tap contributes nothing, forward and backward; the other taps are unharmed."""
    x = torch.randn(2, 4, 5, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 4, 3, 3, dtype=dtype, requires_grad=True)
    offset = torch.randn(2, 18, 5, 6, dtype=dtype)
    hit = torch.rand(2, 9, 5, 6) < 0.5
    offset[:, 0::2][hit] = bad
    offset.requires_grad_()
    out = deform_conv2d(x, offset, weight, padding=1)
    off_map = offset.detach().clone()
    off_map[:, 0::2][hit] = -100.0
    torch.testing.assert_close(out, deform_conv2d(x, off_map, weight, padding=1))
    grads = torch.autograd.grad(out.sum(), (x, offset, weight))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[1][:, 0::2][hit] == 0).all() and (grads[1][:, 1::2][hit] == 0).all()


@pytest.mark.usefixtures("device")
def test_positions_on_the_border():
    """At exactly -1 the sample is 0 and its gradient one-sided; at H - 1 it is the last row (as torchvision)."""
    x = torch.arange(6.0).view(1, 1, 2, 3) + 1
    weight = torch.ones(1, 1, 1, 1)
    for y, value, slope in ((-1.0, 0.0, 1.0), (1.0, 4.0, -4.0), (2.0, 0.0, 0.0), (-0.5, 0.5, 1.0)):
        offset = torch.tensor([[y, 0.0]]).requires_grad_()
        out = deform_conv2d(x, offset, weight, locations=torch.tensor([0]))
        assert out.item() == value
        assert torch.autograd.grad(out, offset)[0][0, 0].item() == slope


@pytest.mark.usefixtures("device")
def test_empty_inputs_have_gradients():
    nowhere = torch.zeros(0, dtype=torch.int64)
    for images, locations in ((0, None), (0, nowhere), (2, nowhere)):
        x = torch.randn(images, 4, 5, 5, requires_grad=True)
        weight = torch.randn(2, 4, 3, 3, requires_grad=True)
        offset = torch.zeros(*((images, 18, 5, 5) if locations is None else (0, 18)), requires_grad=True)
        out = deform_conv2d(x, offset, weight, padding=1, locations=locations)
        assert out.shape == ((images, 2, 5, 5) if locations is None else (0, 2))
        for grad in torch.autograd.grad(out.sum(), (x, weight, offset)):
            assert (grad == 0).all()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel, dilation", [((3, 3), (1, 1)), ((1, 5), (2, 3)), ((2, 4), (1, 2))])
def test_box_offsets_spread_the_taps_over_a_box(kernel, dilation):
    """On maps that hold their own coordinates, an output channel per tap says where it sampled."""
    size, strides, taps = (40, 50), [4.0, 8.0], kernel[0] * kernel[1]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in size), indexing="ij")
    maps = [torch.stack([x, y])[None] * stride for stride in strides]
    weight = torch.zeros(2, taps, 2, taps, dtype=torch.float64)
    for tap in range(taps):
        weight[0, tap, 0, tap] = weight[1, tap, 1, tap] = 1
    padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel)]
    out_size = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel)]
    per_level = out_size[0] * out_size[1]
    locations = torch.randint(2 * per_level, (200,))
    place, stride = locations % per_level, torch.tensor(strides, dtype=torch.float64)[locations // per_level]
    # The middle of the kernel at a location; with an even kernel or padding it may lie between pixels.
    first = [place // out_size[1], place % out_size[1]]
    middle = [f - p + d * (k - 1) / 2 + 0.5 for f, p, d, k in zip(first, padding, dilation, kernel)]
    centers = torch.stack([middle[1], middle[0]], 1) * stride[:, None]
    corner = 4 * (4 + torch.rand(200, 2, dtype=torch.float64) * 15)
    boxes = torch.cat([corner, corner + 4 * torch.rand(200, 2, dtype=torch.float64) * 17], 1).requires_grad_()
    offset, matrix = box_offsets(boxes, centers, stride, kernel, dilation)
    assert offset.shape == (200, 4) and matrix.shape == (2 * taps, 4)
    out = deform_conv2d(
        maps, offset, weight.view(2 * taps, 2, *kernel), padding=padding, dilation=dilation, locations=locations,
        offset_weight=matrix,
    )  # fmt: skip
    sampled = out.view(200, 2, *kernel)
    left, top, right, bottom = (side[:, None] for side in boxes.detach().unbind(1))
    columns = left + (torch.arange(kernel[1]) + 0.5) / kernel[1] * (right - left)
    rows = top + (torch.arange(kernel[0]) + 0.5) / kernel[0] * (bottom - top)
    torch.testing.assert_close(sampled[:, 0].detach(), columns[:, None, :].expand(-1, *kernel))
    torch.testing.assert_close(sampled[:, 1].detach(), rows[:, :, None].expand(-1, *kernel))
    (grad,) = torch.autograd.grad(sampled[:, 0].sum(), boxes)
    torch.testing.assert_close(grad, torch.tensor([[taps / 2, 0.0, taps / 2, 0.0]]).double().expand(200, 4))


def test_autocast(device):
    x, weight = torch.randn(1, 8, 6, 6), torch.randn(4, 8, 3, 3)
    offset = torch.randn(1, 18, 6, 6)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = deform_conv2d(x, offset, weight, padding=1)
    assert out.dtype == torch.bfloat16
    # Offsets are not rounded with the rest.
    expected = deform_conv2d(x.bfloat16(), offset, weight.bfloat16(), padding=1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("forward_too", [False, True])
def test_backward_within_autocast(device, forward_too):
    """A loop may call backward() there; the gradients are those of a call outside."""
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((1, 8, 6, 6), (20, 2), (4, 8, 3, 3), (18, 2))]

    def run():
        x, deltas, weight, offset_weight = leaves
        locations = torch.arange(20)
        return deform_conv2d(x, deltas, weight, padding=1, locations=locations, offset_weight=offset_weight)

    with torch.autocast(device, dtype=torch.bfloat16, enabled=forward_too):
        out = run()
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(found, expected)


def test_double_backward_is_refused():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    out = deform_conv2d(x, torch.zeros(1, 18, 5, 5), torch.randn(2, 4, 3, 3, requires_grad=True), padding=1)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


def test_module():
    module = DeformConv2d(8, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
    out = module(torch.randn(2, 8, 9, 7), torch.zeros(2, 6, 5, 7))
    expected = torch.nn.functional.conv2d
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(
        module(x, torch.zeros(2, 6, 5, 7)), expected(x, module.weight, module.bias, (2, 1), (1, 0), groups=2)
    )
    assert out.shape == (2, 6, 5, 7)
    assert set(module.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match="groups: expected a divisor"):
        DeformConv2d(8, 6, 3, groups=4)


X, W = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3)
OFFSET = torch.zeros(2, 18, 6, 6)
BAD_CALLS = [
    (dict(input=torch.randn(4, 6, 6)), r"input: expected maps of shape"),
    (dict(input=[]), r"input: expected maps"),
    (dict(input=X.int()), r"input: expected a floating-point dtype"),
    (dict(input=torch.randn(2, 4, 0, 6)), r"input: expected maps that a 3 x 3 kernel fits"),
    (dict(weight=torch.randn(3, 3, 3, 3)), r"weight: expected a second dimension that divides C_in = 4, got 3"),
    (dict(weight=W.double()), r"weight: expected dtype Float, got Double"),
    (dict(weight=W[0]), r"weight: expected a 4-D tensor"),
    (dict(offset=torch.zeros(2, 18, 6, 5)), r"offset: expected shape \[2, 18, 6, 6\], got \[2, 18, 6, 5\]"),
    (dict(offset=torch.zeros(2, 17, 6, 6)), r"offset: expected a multiple of 2 \* kh \* kw = 18"),
    (dict(offset=torch.zeros(2, 54, 6, 6)), r"number of offset groups that divides C_in = 4, got 3"),
    (dict(offset=[OFFSET, OFFSET]), r"offset: expected 1 tensors, one per level, got 2"),
    (dict(bias=torch.zeros(4)), r"bias: expected shape \[3\], got \[4\]"),
    (dict(mask=torch.zeros(2, 8, 6, 6)), r"mask: expected shape \[2, 9, 6, 6\]"),
    (dict(stride=0), r"stride: expected two integers from 1 to 2\^30, got \[0, 0\]"),
    (dict(stride=(1, 2, 3)), r"stride: expected an int or two ints"),
    (dict(padding=-1), r"padding: expected two integers from 0"),
    (dict(dilation=2**40), r"dilation: expected two integers"),
    (dict(locations=torch.tensor([0])), r"offset: expected shape \[1, 18\], got \[2, 18, 6, 6\]"),
    (dict(locations=torch.tensor([72]), offset=torch.zeros(1, 18)), r"locations: expected values in \[0, 72\), got 72"),
    (dict(locations=torch.tensor([0, -1]), offset=torch.zeros(2, 18)), r"got -1 at 1"),
    (dict(locations=torch.tensor([0.0]), offset=torch.zeros(1, 18)), r"locations: expected dtype Long"),
    (dict(offset_weight=torch.zeros(18, 3)), r"offset: expected shape \[2, 3, 6, 6\]"),
    (dict(offset_weight=torch.zeros(17, 2)), r"offset_weight: expected a multiple"),
]


@pytest.mark.parametrize("change, message", BAD_CALLS)
def test_bad_arguments_are_named(change, message):
    arguments = dict(input=X, offset=OFFSET, weight=W, padding=1) | change
    with pytest.raises((RuntimeError, ValueError), match=message):
        deform_conv2d(**arguments)
