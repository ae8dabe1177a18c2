"""Both convolutions at the shapes and dtypes of CUDA's fused kernel: whole chunks of channels, any other edge.

Row counts straddle its tiles of 64 and 128 rows, output channels its tiles of 256; maps mix levels, layouts,
strides and groups. The definition, in float64, is the reference.
"""

import random

import pytest
import torch

from ga_scope.ops import reference

from .cases import LAYOUTS, with_layout

OPS = torch.ops.ga_scope
# The operands of a product are rounded to the dtype (interpolated samples too), sums are not.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-3}
CHUNK = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}


class Case:
    def __init__(self, dtype, layout=None, images=None):
        random_int = random.randint
        self.kernel = random.choice([(3, 3), (1, 1), (2, 3)])
        self.groups, self.offset_groups = random.choice([(1, 1), (1, 2), (2, 1), (2, 2), (1, 4)])
        self.channels_in = CHUNK[dtype] * max(self.groups, self.offset_groups) * random.choice([1, 1, 2])
        self.channels_out = self.groups * random.choice([1, 7, 40, 64, 130, 256, 257])
        self.stride, self.padding = random.choice([((1, 1), (1, 1)), ((2, 1), (0, 2))])
        self.dilation = random.choice([(1, 1), (1, 2)])
        images = images or random.choice([1, 2])
        sizes = [(random_int(5, 12), random_int(6, 13)) for _ in range(random.choice([1, 2, 4]))]
        layout = layout or random.choice(LAYOUTS)
        maps = [torch.randn(images, self.channels_in, *size).to(dtype) for size in sizes]
        self.maps = [with_layout(m, layout) for m in maps]
        fan_in = self.channels_in // self.groups * self.kernel[0] * self.kernel[1]
        weight = torch.randn(self.channels_out, self.channels_in // self.groups, *self.kernel) / fan_in**0.5
        self.weight = weight.to(dtype)
        self.bias = torch.randn(self.channels_out).to(dtype) if random.random() < 0.7 else None
        self.sizes = [
            tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, p, d, k, s in zip(size, self.padding, self.dilation, self.kernel, self.stride)
            )
            for size in sizes
        ]
        self.count = images * sum(h * w for h, w in self.sizes)
        self.settings = [list(self.stride), list(self.padding), list(self.dilation)]

    def offsets(self, rows):
        columns = self.offset_groups * self.kernel[0] * self.kernel[1]
        return torch.randn(rows, 2 * columns) * random.choice([0.5, 3]), torch.rand(rows, columns)

    def expected_deform(self, offset, mask, locations):
        return reference.deform_conv2d(
            [m.double() for m in self.maps], offset.double(), self.weight.double(),
            None if self.bias is None else self.bias.double(), self.stride, self.padding, self.dilation,
            None if mask is None else mask.double(), locations,
        )  # fmt: skip

    def to_maps(self, rows):
        images = self.maps[0].shape[0]
        counts = [h * w for h, w in self.sizes]
        parts = rows.view(images, sum(counts), -1).split(counts, 1)
        return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, self.sizes)]


def to_rows(maps):
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], 1).flatten(0, 1)


def assert_near(out, expected, dtype):
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 257, 300])
def test_deform_at_locations(device, dtype, rows):
    case = Case(dtype)
    locations = torch.randint(case.count, (rows,))
    offset, mask = case.offsets(rows)
    modulated = random.random() < 0.5
    (out,) = OPS.deform_conv2d(
        case.maps, [offset], case.weight, case.bias, [mask] if modulated else [], None, locations, *case.settings,
        case.groups, case.offset_groups, True,
    )  # fmt: skip
    assert_near(out, case.expected_deform(offset, mask if modulated else None, locations), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_deform_dense(device, dtype, layout):
    case = Case(dtype, layout)
    offset, mask = case.offsets(case.count)
    out = OPS.deform_conv2d(
        case.maps, case.to_maps(offset), case.weight, case.bias, case.to_maps(mask), None, None, *case.settings,
        case.groups, case.offset_groups, True,
    )  # fmt: skip
    assert_near(to_rows(out), case.expected_deform(offset, mask, None), dtype)
    for level, map in zip(out, case.maps):
        channels_last = map.stride(1) == 1 and map.shape[1] > 1
        assert level.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_deform_with_offset_weight(device, dtype):
    """Guided Anchoring's feature adaption: offsets made from (dw, dh)."""
    case = Case(dtype)
    locations = torch.randint(case.count, (150,))
    shape, matrix = torch.randn(150, 2), torch.randn(2 * case.offset_groups * case.kernel[0] * case.kernel[1], 2)
    (out,) = OPS.deform_conv2d(
        case.maps, [shape], case.weight, case.bias, [], matrix, locations, *case.settings, case.groups,
        case.offset_groups, True,
    )  # fmt: skip
    assert_near(out, case.expected_deform(shape @ matrix.T, None, locations), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("trial", range(4))
def test_masked(device, dtype, trial):
    case = Case(dtype)
    locations = torch.randint(case.count, (random.choice([5, 130, 400]),))
    out = OPS.masked_conv2d(case.maps, case.weight, case.bias, locations, *case.settings, case.groups, True)
    expected = reference.masked_conv2d(
        [m.double() for m in case.maps], case.weight.double(), None if case.bias is None else case.bias.double(),
        locations, *case.settings, case.groups,
    )  # fmt: skip
    assert_near(out, expected, dtype)


def test_pixels_off_the_sample_do_not_leak(device):
    """A NaN or infinite pixel reaches only the samples that touch it: masked loads, not zero weights."""
    x = torch.randn(1, 64, 9, 9).bfloat16()
    x[0, :, 4, 4] = float("nan")
    x[0, :, 0, 0] = float("inf")
    weight = torch.randn(8, 64, 3, 3).bfloat16()
    every = torch.arange(81)
    out = OPS.masked_conv2d([x], weight, None, every, [1, 1], [1, 1], [1, 1], 1, False).view(9, 9, 8)
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[3:6, 3:6] = True
    near[:2, :2] = True
    assert (out.isfinite().all(2) == ~near).all()
