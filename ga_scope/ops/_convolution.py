"""Shapes of a convolution's arguments, as csrc/convolution.cpp checks them: what fake kernels raise and return."""

import torch

from . import _arguments


class Convolution:
    """One call of either convolution. ``locations`` is None where every output position is computed.

    Raises RuntimeError naming the argument, what was expected and what came, from tensors without numbers.
    """

    def __init__(self, op, input, weight, locations, stride, padding, dilation, groups):
        self.op, self.input, self.weight, self.locations = op, input, weight, locations
        if len(input) == 0:
            raise RuntimeError(f"{op}: input: expected at least one map, got none")
        _arguments.check_dim(op, "weight", weight, 4)
        first = input[0]
        for map in input:
            _arguments.check_dim(op, "input", map, 4)
            _arguments.check_shape(op, "input", map, [*first.shape[:2], *map.shape[2:]])
            _arguments.check_dtype(op, "input", map, [first.dtype])
        _arguments.check_dtype(op, "weight", weight, [first.dtype])
        torch._check(
            groups >= 1 and first.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0,
            lambda: (
                f"{op}: weight: expected shape [C_out, {first.shape[1]} / groups, kernel_h, kernel_w] with groups "
                f"= {groups} that divides C_out, got {list(weight.shape)}"
            ),
        )
        self.sizes = [_arguments.output_size(map.shape[2:], weight, stride, padding, dilation) for map in input]
        for size, map in zip(self.sizes, input, strict=True):
            torch._check(
                size[0] >= 1 and size[1] >= 1,
                lambda map=map: (
                    f"{op}: input: expected maps that a {list(weight.shape[2:])} kernel fits after padding, "
                    f"got {list(map.shape)}"
                ),
            )
        if locations is not None:
            _arguments.check_dim(op, "locations", locations, 1)
            _arguments.check_dtype(op, "locations", locations, [torch.int64])

    @property
    def output_shapes(self):
        """Of the tensors that it gives: one of rows, or a map per level."""
        columns = self.weight.shape[0]
        if self.locations is not None:
            return [(self.locations.shape[0], columns)]
        return [(self.input[0].shape[0], columns, *size) for size in self.sizes]

    def check_bias(self, bias):
        if bias is not None:
            _arguments.check_shape(self.op, "bias", bias, [self.weight.shape[0]])
            _arguments.check_dtype(self.op, "bias", bias, [self.input[0].dtype])

    def check_per_location(self, name, tensors, columns):
        """``columns`` numbers per location: rows, or a map per level."""
        shapes = [(shape[0], columns, *shape[2:]) for shape in self.output_shapes]
        if len(tensors) != len(shapes):
            what = "tensor (locations are given)" if self.locations is not None else "tensors, one per level"
            raise RuntimeError(f"{self.op}: {name}: expected {len(shapes)} {what}, got {len(tensors)} tensors")
        for tensor, shape in zip(tensors, shapes, strict=True):
            _arguments.check_shape(self.op, name, tensor, shape)

    def check_positions(self, offset, mask, offset_weight, offset_groups):
        """Deformable sampling: offsets and modulation."""
        channels, taps = self.input[0].shape[1], self.weight.shape[2] * self.weight.shape[3]
        torch._check(
            offset_groups >= 1 and channels % offset_groups == 0,
            lambda: (
                f"{self.op}: offset: expected a number of offset groups that divides C_in = {channels}, "
                f"got {offset_groups}"
            ),
        )
        columns = 2 * offset_groups * taps
        if offset_weight is not None:
            _arguments.check_dim(self.op, "offset_weight", offset_weight, 2)
            _arguments.check_shape(self.op, "offset_weight", offset_weight, [columns, offset_weight.shape[1]])
            columns = offset_weight.shape[1]
        self.check_per_location("offset", offset, columns)
        if mask:
            self.check_per_location("mask", mask, offset_groups * taps)
        dtype = self.input[0].dtype
        allowed = [dtype, torch.float32] if dtype in (torch.bfloat16, torch.float16) else [dtype]
        weights = [] if offset_weight is None else [offset_weight]
        for name, tensors in {"offset": offset, "mask": mask or [], "offset_weight": weights}.items():
            for tensor in tensors:
                _arguments.check_dtype(self.op, name, tensor, allowed)
