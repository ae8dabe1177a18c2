"""Deformable convolution, dense or at listed locations only."""

import math

import torch
from torch import Tensor, nn

from . import _arguments, _convolution

# Shapes: N images, C_in / C_out channels, L locations, G offset groups, K = kh * kw taps,
# R columns of offset (2 * G * K without offset_weight).


def deform_conv2d(
    input,
    offset,
    weight,
    bias=None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    mask=None,
    locations=None,
    offset_weight=None,
):
    """Deformable convolution v1, or v2 with ``mask`` (Dai et al. 2017, Zhu et al. 2019).

    The arguments up to ``mask`` are those of :func:`torchvision.ops.deform_conv2d`, with the same order
    and layout: channel ``2 * (g * K + k)`` of ``offset`` moves tap ``k`` of offset group ``g`` in y, the
    next one in x, in pixels of the input. A sample outside ``(-1, H) x (-1, W)``, or whose position is
    NaN or infinite, is 0.

    Args:
        input: ``(N, C_in, H, W)``, or the list of a pyramid's maps.
        offset: ``(N, R, H_out, W_out)``, or the list per level. With ``locations``: ``(L, R)``.
            May stay float32 where ``input`` is bfloat16 or float16.
        weight: ``(C_out, C_in / groups, kh, kw)``, shared by all levels.
        bias: ``(C_out,)`` or None.
        stride, padding, dilation: int or (y, x).
        mask: modulation ``(N, G * K, H_out, W_out)`` per level, or ``(L, G * K)``; or None.
        locations: ``(L,)`` int64, indices into the output positions (see :mod:`ga_scope.ops`), in any
            order, repeats allowed. Only these are computed.
        offset_weight: ``(2 * G * K, R)``. The offsets are then ``offset @ offset_weight.T`` at each
            location, made on the fly: for Guided Anchoring (section 3.3) R = 2 and ``offset`` is (dw, dh).

    Returns:
        With ``locations`` a tensor ``(L, C_out)``; otherwise ``(N, C_out, H_out, W_out)``, or the list of
        them per level, in the input's memory format.

    Raises:
        RuntimeError: naming the argument, what was expected and what came.
    """
    inputs, single = _arguments.as_list(input, "input")
    offsets, _ = _arguments.as_list(offset, "offset")
    masks = None if mask is None else _arguments.as_list(mask, "mask")[0]
    _arguments.refuse_forward_ad("deform_conv2d", [*inputs, *offsets, *(masks or ()), weight, bias, offset_weight])
    if not inputs or inputs[0].dim() != 4:
        got = list(inputs[0].shape) if inputs else "none"
        raise RuntimeError(f"deform_conv2d: input: expected maps of shape [N, C, H, W], got {got}")
    groups = _arguments.convolution_groups(inputs[0].shape[1], weight)
    outputs = torch.ops.ga_scope.deform_conv2d(
        inputs,
        offsets,
        weight,
        bias,
        masks,
        offset_weight,
        locations,
        _arguments.pair(stride, "stride"),
        _arguments.pair(padding, "padding"),
        _arguments.pair(dilation, "dilation"),
        groups,
        _offset_groups(offsets, weight, offset_weight),
        _arguments.allow_tf32(inputs),
    )
    return outputs[0] if single or locations is not None else outputs


def box_offsets(boxes, centers, strides, kernel_size=3, dilation=1):
    """Offsets that spread a kernel's taps evenly over a box: ``(offset, offset_weight)`` of :func:`deform_conv2d`.

    Tap (i, j) samples the centre of cell (i, j) of the box cut into kh x kw cells: the features are aligned with
    an anchor, whatever its shape and place. Four numbers per location instead of 2 * K, differentiable in the
    boxes. For convolutions of stride 1 with ``padding = dilation * (kernel_size - 1) / 2``.

    Args:
        boxes: ``(L, 4)`` in pixels of the image, one per location.
        centers: ``(L, 2)``, the points (x, y) of the image that the locations stand for.
        strides: of the locations' levels, in pixels: a number or ``(L,)``.
        kernel_size, dilation: int or (y, x), as of the convolution.

    Returns:
        ``offset`` ``(L, 4)`` and ``offset_weight`` ``(2 * K, 4)``, of one offset group.
    """
    # Python numbers stay what they are: tensors made of them would wait for a GPU.
    kernel, dilation = _arguments.pair(kernel_size, "kernel_size"), _arguments.pair(dilation, "dilation")
    if isinstance(strides, Tensor):
        strides = strides.to(boxes).reshape(-1, 1)
    middles = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    cells = (boxes[:, 2:] - boxes[:, :2]) / strides
    # The whole kernel's shift, and how much further apart than `dilation` the taps lie: y before x.
    shift = ((middles - centers) / strides).flip(1)
    stretch = torch.stack([cells[:, 1] / kernel[0] - dilation[0], cells[:, 0] / kernel[1] - dilation[1]], 1)
    steps = [torch.arange(n, dtype=boxes.dtype, device=boxes.device) - (n - 1) / 2 for n in kernel]
    y, x = torch.meshgrid(*steps, indexing="ij")
    one, zero = torch.ones_like(y), torch.zeros_like(y)
    rows = torch.stack([torch.stack([one, zero, y, zero], -1), torch.stack([zero, one, zero, x], -1)], 2)
    return torch.cat([shift, stretch], 1), rows.flatten(0, 2)


def _offset_groups(offsets, weight, offset_weight):
    if not offsets and offset_weight is None:
        raise RuntimeError("deform_conv2d: offset: expected at least one tensor, got none")
    columns_of = offsets[0] if offset_weight is None else offset_weight
    _arguments.check_tensor(columns_of, "offset_weight")
    if columns_of.dim() < 2:
        raise RuntimeError(f"deform_conv2d: offset: expected 2 or 4 dimensions, got shape {list(columns_of.shape)}")
    columns = offsets[0].shape[1] if offset_weight is None else offset_weight.shape[0]
    per_group = 2 * weight.shape[2] * weight.shape[3]
    if per_group == 0:
        raise RuntimeError(f"deform_conv2d: weight: expected a kernel of at least 1 x 1, got {list(weight.shape)}")
    if columns == 0 or columns % per_group:
        name = "offset" if offset_weight is None else "offset_weight"
        raise RuntimeError(
            f"deform_conv2d: {name}: expected a multiple of 2 * kh * kw = {per_group} offsets per location, "
            f"got {columns}"
        )
    return columns // per_group


@torch.library.register_fake("ga_scope::deform_conv2d")
def _(
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
    convolution = _convolution.Convolution("deform_conv2d", input, weight, locations, stride, padding, dilation, groups)
    convolution.check_bias(bias)
    convolution.check_positions(offset, mask, offset_weight, offset_groups)
    outputs = [input[0].new_empty(shape) for shape in convolution.output_shapes]
    if locations is not None:
        return outputs
    return [_arguments.keep_memory_format(output, map) for output, map in zip(outputs, input, strict=True)]


@torch.library.register_fake("ga_scope::deform_conv2d_backward")
def _(
    grad_output,
    input,
    offset,
    weight,
    mask,
    offset_weight,
    locations,
    stride,
    padding,
    dilation,
    groups,
    offset_groups,
    want_input,
    want_weight,
    deterministic,
):
    convolution = _convolution.Convolution(
        "deform_conv2d_backward", input, weight, locations, stride, padding, dilation, groups
    )
    convolution.check_positions(offset, mask, offset_weight, offset_groups)
    convolution.check_per_location("grad_output", grad_output, weight.shape[0])
    return (
        [_arguments.keep_memory_format(map.new_empty(map.shape), map) for map in input],
        [item.new_empty(item.shape) for item in offset],
        weight.new_empty(weight.shape),
        [item.new_empty(item.shape) for item in mask or ()],
        input[0].new_empty(0) if offset_weight is None else offset_weight.new_empty(offset_weight.shape),
    )


def _setup_context(ctx, inputs, output):
    input, offset, weight, _, mask, offset_weight, locations, *settings, _ = inputs
    ctx.save_for_backward(*input, *offset, *(mask or ()), weight, offset_weight, locations)
    ctx.counts = len(input), len(offset), None if mask is None else len(mask)
    ctx.settings = settings


def _backward(ctx, grad_output):
    inputs, offsets, masks = ctx.counts
    saved = list(ctx.saved_tensors)
    input, saved = saved[:inputs], saved[inputs:]
    offset, saved = saved[:offsets], saved[offsets:]
    mask, (weight, offset_weight, locations) = saved[: masks or 0], saved[masks or 0 :]
    needs = ctx.needs_input_grad
    grad_input, grad_offset, grad_weight, grad_mask, grad_offset_weight = torch.ops.ga_scope.deform_conv2d_backward(
        grad_output,
        input,
        offset,
        weight,
        None if masks is None else mask,
        offset_weight,
        locations,
        *ctx.settings,
        any(needs[0]),
        needs[2],
        torch.are_deterministic_algorithms_enabled(),
    )
    grad_bias = None
    if needs[3]:
        # Sparse gradients are rows, dense ones (N, C_out, H, W) per level.
        grad_bias = sum(grad.sum((0, 2, 3)) if grad.dim() == 4 else grad.sum(0) for grad in grad_output)
    return (
        [grad if need else None for grad, need in zip(grad_input, needs[0], strict=True)],
        [grad if need else None for grad, need in zip(grad_offset, needs[1], strict=True)],
        grad_weight if needs[2] else None,
        grad_bias,
        None if masks is None else [grad if need else None for grad, need in zip(grad_mask, needs[4], strict=True)],
        grad_offset_weight if needs[5] else None,
        None,
        *[None] * len(ctx.settings),
        None,
    )


torch.library.register_autograd("ga_scope::deform_conv2d", _backward, setup_context=_setup_context)
_arguments.refuse_double_backward("deform_conv2d")
_arguments.loop_under_vmap("deform_conv2d")
_arguments.loop_under_vmap("deform_conv2d_backward")


def _cast_arguments(dtype, input, offset, weight, bias, mask, offset_weight, *rest):
    # Positions keep float32: at bfloat16 an offset of 20 pixels would be off by up to 1/16 pixel.
    return (
        [_arguments.cast(map, dtype) for map in input],
        [_arguments.cast(item, torch.float32) for item in offset],
        _arguments.cast(weight, dtype),
        _arguments.cast(bias, dtype),
        mask and [_arguments.cast(item, torch.float32) for item in mask],
        _arguments.cast(offset_weight, torch.float32),
        *rest,
    )


_library = torch.library.Library("ga_scope", "IMPL")
_arguments.register_autocast(_library, "deform_conv2d", _cast_arguments)
_arguments.leave_alone_under_autocast(_library, "deform_conv2d_backward")


class DeformConv2d(nn.Module):
    """:func:`deform_conv2d` with weights, initialised as :class:`torch.nn.Conv2d`.

    ``forward(input, offset, mask=None, locations=None, offset_weight=None)``; the constructor, the attributes and
    the state dict are those of :class:`torchvision.ops.DeformConv2d`.
    """

    __prepare_scriptable__ = _arguments.refuse_torchscript("DeformConv2d")

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels = {in_channels} and out_channels = {out_channels}, "
                f"got {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple(_arguments.pair(kernel_size, "kernel_size"))
        self.stride = tuple(_arguments.pair(stride, "stride"))
        self.padding = tuple(_arguments.pair(padding, "padding"))
        self.dilation = tuple(_arguments.pair(dilation, "dilation"))
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input, offset, mask=None, locations=None, offset_weight=None) -> Tensor:
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            locations,
            offset_weight,
        )

    def extra_repr(self):
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}"
        )
        return f"{text}, groups={self.groups}, bias={self.bias is not None}"


class DeformConv2dPack(DeformConv2d):
    """A deformable convolution that makes its own offsets from its input, by a convolution of the same kernel.

    The names in the state dict are ``weight`` and ``conv_offset``, as in models of mmcv, whose checkpoints load. The
    offsets start at zero.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as :class:`DeformConv2d`.
        deform_groups: into how many groups the input's channels are split, each with offsets of its own.
    """

    COLUMNS_PER_TAP = 2

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deform_groups=1,
        bias=False,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if in_channels % deform_groups:
            raise ValueError(f"deform_groups: expected a divisor of in_channels = {in_channels}, got {deform_groups}")
        self.deform_groups = deform_groups
        columns = self.COLUMNS_PER_TAP * deform_groups * math.prod(self.kernel_size)
        self.conv_offset = nn.Conv2d(in_channels, columns, self.kernel_size, self.stride, self.padding, self.dilation)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input) -> Tensor:
        return super().forward(input, self.conv_offset(input))

    def extra_repr(self):
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}"


class ModulatedDeformConv2dPack(DeformConv2dPack):
    """:class:`DeformConv2dPack` with modulation (v2): ``conv_offset`` makes offsets and, through a sigmoid, weights.

    Its channels are the ``2 * deform_groups * K`` offsets and then the ``deform_groups * K`` weights' logits; a
    modulation that starts at 1/2 is the paper's (Zhu et al. 2019, section 3.2).
    """

    COLUMNS_PER_TAP = 3

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deform_groups=1,
        bias=True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, bias)

    def forward(self, input) -> Tensor:
        columns = self.conv_offset(input)
        offsets = columns.shape[1] // 3 * 2
        return DeformConv2d.forward(self, input, columns[:, :offsets], columns[:, offsets:].sigmoid())
