"""Convolution evaluated only where a mask or a list of locations says."""

import torch
from torch import nn

from . import _arguments, _convolution


def masked_conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, mask=None, locations=None, dense=False
):
    """A convolution at some output positions only (masked convolution, Guided Anchoring section 3.1).

    Args:
        input: ``(N, C_in, H, W)``, or the list of a pyramid's maps.
        weight: ``(C_out, C_in / groups, kh, kw)``, shared by all levels.
        bias, stride, padding, dilation, groups: as :func:`torch.nn.functional.conv2d`.
        mask: bool ``(N, H_out, W_out)`` (or the list per level): where to compute. Its locations are in
            index order. To list them waits for a GPU.
        locations: instead of a mask, ``(L,)`` int64 indices into the output positions (see
            :mod:`ga_scope.ops`), in any order, repeats allowed.
        dense: return maps, zero where nothing was computed, instead of rows. A repeated location is
            written once.

    Returns:
        ``(L, C_out)``, row i at location i; or, with ``dense``, ``(N, C_out, H_out, W_out)`` (the list of
        them for a list of inputs).

    Raises:
        RuntimeError, ValueError: naming the argument, what was expected and what came.
    """
    inputs, single = _arguments.as_list(input, "input")
    _arguments.refuse_forward_ad("masked_conv2d", [*inputs, weight, bias])
    groups = _arguments.integer(groups, "groups")
    stride, padding, dilation = (
        _arguments.pair(value, name)
        for value, name in ((stride, "stride"), (padding, "padding"), (dilation, "dilation"))
    )
    if (mask is None) == (locations is None):
        raise ValueError("masked_conv2d: mask, locations: expected exactly one of them")
    if not inputs or inputs[0].dim() != 4:
        got = list(inputs[0].shape) if inputs else "none"
        raise RuntimeError(f"masked_conv2d: input: expected maps of shape [N, C, H, W], got {got}")
    _arguments.convolution_groups(inputs[0].shape[1], weight)
    may_repeat = mask is None
    if mask is not None:
        locations = _locations_of(mask, inputs, weight, stride, padding, dilation)
    rows = torch.ops.ga_scope.masked_conv2d(
        inputs, weight, bias, locations, stride, padding, dilation, groups, _arguments.allow_tf32(inputs)
    )
    if not dense:
        return rows
    maps = _to_maps(rows, locations, may_repeat, inputs, weight, stride, padding, dilation)
    return maps[0] if single else maps


def _locations_of(mask, inputs, weight, stride, padding, dilation):
    masks, _ = _arguments.as_list(mask, "mask")
    if min(stride) < 1:
        raise ValueError(f"masked_conv2d: stride: expected positive integers, got {stride}")
    if len(masks) != len(inputs):
        raise RuntimeError(f"masked_conv2d: mask: expected {len(inputs)} tensors, one per level, got {len(masks)}")
    for item, map in zip(masks, inputs, strict=True):
        expected = [map.shape[0], *_arguments.output_size(map.shape[2:], weight, stride, padding, dilation)]
        if item.dtype != torch.bool or list(item.shape) != expected:
            raise RuntimeError(
                f"masked_conv2d: mask: expected bool of shape {expected}, got {item.dtype} of {list(item.shape)}"
            )
    return torch.cat([item.flatten(1) for item in masks], 1).flatten().nonzero().squeeze(1)


def _to_maps(rows, locations, may_repeat, inputs, weight, stride, padding, dilation):
    sizes = [_arguments.output_size(map.shape[2:], weight, stride, padding, dilation) for map in inputs]
    counts = [height * width for height, width in sizes]
    images = inputs[0].shape[0]
    if may_repeat:
        rows = _once(rows, locations, images * sum(counts))
    flat = rows.new_zeros(images * sum(counts), rows.shape[1]).index_put((locations,), rows)
    parts = flat.view(images, sum(counts), rows.shape[1]).split(counts, 1)
    maps = [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]
    return [_arguments.keep_memory_format(out, map) for out, map in zip(maps, inputs, strict=True)]


def _once(rows, locations, count):
    """The rows, of those that share a location one with a gradient: index_put's derivative would give it to each."""
    index = torch.arange(rows.shape[0], device=rows.device)
    row_of = locations.new_zeros(count).index_put((locations,), index)
    return torch.where((row_of[locations] == index)[:, None], rows, rows.detach())


@torch.library.register_fake("ga_scope::masked_conv2d")
def _(input, weight, bias, locations, stride, padding, dilation, groups, allow_tf32):
    convolution = _convolution.Convolution("masked_conv2d", input, weight, locations, stride, padding, dilation, groups)
    convolution.check_bias(bias)
    return weight.new_empty(locations.shape[0], weight.shape[0])


@torch.library.register_fake("ga_scope::masked_conv2d_backward")
def _(
    grad_output,
    input,
    weight,
    locations,
    stride,
    padding,
    dilation,
    groups,
    want_input,
    want_weight,
    deterministic,
):
    convolution = _convolution.Convolution(
        "masked_conv2d_backward", input, weight, locations, stride, padding, dilation, groups
    )
    convolution.check_per_location("grad_output", [grad_output], weight.shape[0])
    return (
        [_arguments.keep_memory_format(map.new_empty(map.shape), map) for map in input],
        weight.new_empty(weight.shape),
    )


def _setup_context(ctx, inputs, output):
    input, weight, _, locations, *settings, _ = inputs
    ctx.save_for_backward(*input, weight, locations)
    ctx.settings = settings


def _backward(ctx, grad_output):
    *input, weight, locations = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_input, grad_weight = torch.ops.ga_scope.masked_conv2d_backward(
        grad_output,
        input,
        weight,
        locations,
        *ctx.settings,
        any(needs[0]),
        needs[1],
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        [grad if need else None for grad, need in zip(grad_input, needs[0], strict=True)],
        grad_weight if needs[1] else None,
        grad_output.sum(0) if needs[2] else None,
        None,
        *[None] * len(ctx.settings),
        None,
    )


torch.library.register_autograd("ga_scope::masked_conv2d", _backward, setup_context=_setup_context)
_arguments.refuse_double_backward("masked_conv2d")
_arguments.loop_under_vmap("masked_conv2d")
_arguments.loop_under_vmap("masked_conv2d_backward")


def _cast_arguments(dtype, input, weight, bias, *rest):
    return (
        [_arguments.cast(map, dtype) for map in input],
        _arguments.cast(weight, dtype),
        _arguments.cast(bias, dtype),
        *rest,
    )


_library = torch.library.Library("ga_scope", "IMPL")
_arguments.register_autocast(_library, "masked_conv2d", _cast_arguments)
_arguments.leave_alone_under_autocast(_library, "masked_conv2d_backward")


class MaskedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` evaluated where a mask or locations say; same constructor, same state dict.

    ``forward(input, mask=None, locations=None, dense=False)``; with neither mask nor locations it is the
    dense convolution.
    """

    __prepare_scriptable__ = _arguments.refuse_torchscript("MaskedConv2d")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise ValueError(
                f"padding: expected numbers with padding_mode 'zeros', got {self.padding!r} with {self.padding_mode!r}"
            )

    def forward(self, input, mask=None, locations=None, dense=False):
        if mask is None and locations is None:
            inputs, single = _arguments.as_list(input, "input")
            outputs = [super(MaskedConv2d, self).forward(map) for map in inputs]
            return outputs[0] if single else outputs
        return masked_conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            mask=mask,
            locations=locations,
            dense=dense,
        )
