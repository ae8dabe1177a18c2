"""The project's operators as standard ONNX operators of opset 19: what ``torch.onnx`` writes in their place.

Their signatures are those of csrc/ops.cpp. Of the convolutions the models use one kind: stride 1, dilation 1, one
group, padding by half the kernel, so that maps keep their size.
"""

from collections.abc import Callable

import numpy as np
import torch
from onnx.numpy_helper import from_array
from onnxscript import opset19 as op

# Shapes: N images, C channels, P locations of an image, L listed locations, G offset groups, T taps, O output channels,
# B batch entries of K boxes.


def translations(sparse: bool, classes: int) -> dict[Callable, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``.

    Args:
        sparse: deformable convolutions gather what the listed locations read; otherwise they are DeformConv on every
            map, right where all locations are listed in order.
        classes: of the groups of NMS.
    """
    operators, aten = torch.ops.ga_scope, torch.ops.aten
    return {
        # torch.onnx has no stable sort, and these two for numbers that are known when it runs.
        aten.remainder.Scalar: _remainder,
        aten.floor_divide.default: _quotient,
        aten.sort.stable: _stable_sort,
        operators.deform_conv2d.default: gathered_deform_conv if sparse else dense_deform_conv,
        operators.masked_conv2d.default: masked_conv,
        operators.nms_mask.default: _nms_mask_of(classes),
    }


def _remainder(self, other):
    return op.Mod(self, _whole(other))


def _quotient(self, other):
    """Of numbers that are not negative, where rounding down and towards zero are one."""
    return op.Div(self, _whole(other))


def _stable_sort(self, stable=True, dim=-1, descending=False):
    """TopK of all: of equal values the one that comes first is first."""
    room = op.Gather(op.Shape(self), _integers(dim % len(self.shape)))
    as_numbers = self if self.dtype.is_floating_point() else op.Cast(self, to=7)
    values, indices = op.TopK(as_numbers, room, axis=dim, largest=int(descending))
    return [op.CastLike(values, self), indices]


def _whole(number):
    return op.Constant(value_int=number) if isinstance(number, int) else number


# ---- locations ---------------------------------------------------------------------------------------


def _integers(*values):
    return op.Constant(value_ints=list(values))


def _sides(map):
    """Height and width of a map, (1,) each."""
    shape = op.Shape(map)
    return op.Slice(shape, _integers(2), _integers(3)), op.Slice(shape, _integers(3), _integers(4))


def _rows(maps):
    """Maps (N, C, H_l, W_l) as (N, P, C)."""
    flat = [op.Transpose(op.Reshape(map, _integers(0, 0, -1)), perm=[0, 2, 1]) for map in maps]
    return op.Concat(*flat, axis=1)


def _maps(rows, like):
    """The inverse: (N, P, C) as maps of the sizes of others."""
    maps, first = [], _integers(0)
    for map in like:
        height, width = _sides(map)
        last = op.Add(first, op.Mul(height, width))
        part = op.Transpose(op.Slice(rows, first, last, _integers(1)), perm=[0, 2, 1])
        maps.append(op.Reshape(part, op.Concat(_integers(0, 0), height, width, axis=0)))
        first = last
    return maps


class _Places:
    """Where listed locations (L,) are: their map's first row in the (N * P) of all, height and width; y, x; (L, 1)."""

    def __init__(self, maps, locations):
        sides = [_sides(map) for map in maps]
        firsts = [_integers(0)]
        for height, width in sides:
            firsts.append(op.Add(firsts[-1], op.Mul(height, width)))
        every, locations = firsts.pop(), op.Unsqueeze(locations, _integers(1))
        image, place = op.Div(locations, every), op.Mod(locations, every)
        first, (self.height, self.width) = firsts[0], sides[0]
        for level in range(1, len(maps)):
            on_it = op.GreaterOrEqual(place, firsts[level])
            first = op.Where(on_it, firsts[level], first)
            self.height = op.Where(on_it, sides[level][0], self.height)
            self.width = op.Where(on_it, sides[level][1], self.width)
        cell = op.Sub(place, first)
        self.first = op.Add(op.Mul(image, every), first)
        self.y, self.x = op.Div(cell, self.width), op.Mod(cell, self.width)


# ---- convolutions ------------------------------------------------------------------------------------


def _check_kind(weight, stride, padding, dilation, groups):
    height, width = weight.shape[2:]
    kind = [list(stride), list(padding), list(dilation), groups]
    if kind != [[1, 1], [height // 2, width // 2], [1, 1], 1]:
        raise NotImplementedError(f"stride, padding, dilation, groups: expected those that keep sizes, got {kind}")


def dense_deform_conv(
    input,
    offset,
    weight,
    bias,
    mask,
    offset_weight,
    locations,
    stride,
    padding,
    dilation,
    groups,
    offset_groups,
    allow_tf32,
):
    """DeformConv-19 on every map; the rows of all locations."""
    _check_kind(weight, stride, padding, dilation, groups)
    images = op.Slice(op.Shape(input[0]), _integers(0), _integers(1))
    rows = op.Reshape(offset[0], op.Concat(images, _integers(-1, offset[0].shape[1]), axis=0))
    if offset_weight is not None:
        rows = op.MatMul(rows, op.Transpose(offset_weight, perm=[1, 0]))
    pads = [*padding, *padding]
    found = [
        op.DeformConv(map, weight, offsets, bias, pads=pads, offset_group=offset_groups)
        for map, offsets in zip(input, _maps(rows, input))
    ]
    return [op.Reshape(_rows(found), _integers(-1, weight.shape[0]))]


def gathered_deform_conv(
    input,
    offset,
    weight,
    bias,
    mask,
    offset_weight,
    locations,
    stride,
    padding,
    dilation,
    groups,
    offset_groups,
    allow_tf32,
):
    """The four pixels around every sample of the listed locations, weighted (Dai et al. 2017, Eq. 3), times the
    kernel.
    """
    _check_kind(weight, stride, padding, dilation, groups)
    outputs, channels, kernel_height, kernel_width = weight.shape
    taps, of_group = kernel_height * kernel_width, channels // offset_groups
    offsets = offset[0]
    if offset_weight is not None:
        offsets = op.MatMul(offsets, op.Transpose(offset_weight, perm=[1, 0]))
    offsets = op.Reshape(offsets, _integers(-1, offset_groups * taps, 2))
    places = _Places(input, locations)
    tap_y, tap_x = np.divmod(np.arange(taps), kernel_width)
    positions = []
    for axis, (cell, tap, pad) in enumerate(((places.y, tap_y, padding[0]), (places.x, tap_x, padding[1]))):
        grid = op.Add(op.Cast(cell, to=1), _floats(np.tile(tap - pad, offset_groups)))  # (L, G * T)
        positions.append(op.Add(grid, op.Gather(offsets, op.Constant(value_int=axis), axis=2)))
    # Rows of (N, P, G): the channels of one offset group at one location.
    table = op.Reshape(_rows(input), _integers(-1, of_group))
    group = op.Constant(value_ints=np.repeat(np.arange(offset_groups), taps).tolist())
    total = None
    floors = [op.Floor(position) for position in positions]
    for dy in (0.0, 1.0):
        for dx in (0.0, 1.0):
            corner = [op.Add(floor, op.Constant(value_float=step)) for floor, step in zip(floors, (dy, dx))]
            inside, share = None, None
            for position, pixel, side in zip(positions, corner, (places.height, places.width)):
                last = op.Cast(op.Sub(side, _integers(1)), to=1)
                within = op.And(op.GreaterOrEqual(pixel, op.Constant(value_float=0.0)), op.LessOrEqual(pixel, last))
                part = op.Sub(op.Constant(value_float=1.0), op.Abs(op.Sub(position, pixel)))
                inside = within if inside is None else op.And(inside, within)
                share = part if share is None else op.Mul(share, part)
            # What is outside, or not a number, is 0 and reads the map's first pixel.
            y, x = (op.Cast(op.Where(inside, pixel, op.Constant(value_float=0.0)), to=7) for pixel in corner)
            share = op.Where(inside, share, op.Constant(value_float=0.0))
            row = op.Add(op.Add(places.first, op.Mul(y, places.width)), x)
            row = op.Add(op.Mul(row, _integers(offset_groups)), group)
            value = op.Mul(op.Gather(table, row, axis=0), op.Unsqueeze(share, _integers(2)))
            total = value if total is None else op.Add(total, value)
    # The kernel's inputs in the order of the samples: (G, T, C / G).
    kernel = op.Reshape(weight, _integers(outputs, offset_groups, of_group, taps))
    kernel = op.Reshape(op.Transpose(kernel, perm=[1, 3, 2, 0]), _integers(channels * taps, outputs))
    rows = op.MatMul(op.Reshape(total, _integers(-1, channels * taps)), kernel)
    return [rows if bias is None else op.Add(rows, bias)]


def _floats(values):
    return op.Constant(value_floats=[float(value) for value in values])


def masked_conv(input, weight, bias, locations, stride, padding, dilation, groups, allow_tf32):
    """The dense convolution of every map, then the rows of the listed locations."""
    _check_kind(weight, stride, padding, dilation, groups)
    pads = [*padding, *padding]
    rows = _rows([op.Conv(map, weight, bias, pads=pads) for map in input])
    return op.Gather(op.Reshape(rows, _integers(-1, weight.shape[0])), locations, axis=0)


# ---- non-maximum suppression -------------------------------------------------------------------------


def _nms_mask_of(classes: int):
    def nms_mask(boxes, groups, valid, iou_threshold):
        """NonMaxSuppression of every group as a class of its own; its list of survivors as a mask."""
        shape = op.Slice(op.Shape(boxes), _integers(0), _integers(2))
        room = op.Slice(shape, _integers(1), _integers(2))
        # The boxes come best first: their scores are their places from behind, all of them apart.
        scores = op.Cast(op.Range(op.Squeeze(room), op.Constant(value_int=0), op.Constant(value_int=-1)), to=1)
        taking_part = None
        if groups is not None:
            numbers = op.Constant(value=from_array(np.arange(classes)[:, None]))
            taking_part = op.Equal(op.Unsqueeze(groups, _integers(1)), numbers)  # (B, classes, K)
        if valid is not None:
            those = op.Unsqueeze(valid, _integers(1))
            taking_part = those if taking_part is None else op.And(taking_part, those)
        if taking_part is None:
            scores = op.Expand(
                scores, op.Concat(op.Slice(shape, _integers(0), _integers(1)), _integers(1), room, axis=0)
            )
        else:
            scores = op.Where(taking_part, scores, op.Constant(value_float=0.0))
        # Scores of 0 are not above the threshold.
        kept = op.NonMaxSuppression(
            boxes, scores, room, op.Constant(value_float=iou_threshold), op.Constant(value_float=0.0)
        )
        place = op.Gather(kept, _integers(0, 2), axis=1)
        none = op.ConstantOfShape(shape, value=from_array(np.zeros(1, np.float32)))
        ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(kept), _integers(0), _integers(1)))
        return op.Cast(op.ScatterND(none, place, ones), to=9)

    return nms_mask
