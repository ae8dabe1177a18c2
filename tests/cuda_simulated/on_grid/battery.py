"""Calls that between them pass every barrier, wait, bound and swizzle of the kernels, on small and ugly shapes.

Each is a function without arguments that gives tensors; seeds are its own, so that two runs differ by rounding alone.
"""

import functools

import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match

OPS = torch.ops.ga_scope
LARGE, SMALL = 227 << 10, 99 << 10  # shared memory of a block: sm_90, sm_86
CALLS = []


def call(function):
    @functools.wraps(function)
    def run():
        torch.manual_seed(0)
        OPS.simulated_device(2, LARGE)
        try:
            return function()
        finally:
            OPS.simulated_device(2, LARGE)
            torch.use_deterministic_algorithms(False)

    CALLS.append(run)
    return run


def maps(channels, sizes, dtype, images=2):
    return [torch.randn(images, channels, *size).to(dtype) for size in sizes]


def weight(out, channels, kernel, dtype):
    return torch.randn(out, channels, *kernel).div(channels**0.5).to(dtype)


def dense(device, channels, groups, sampling_groups, out, dtype=torch.bfloat16, kernel=(2, 2), sizes=((7, 9), (4, 5))):
    """A modulated deformable convolution of a pyramid, everywhere."""
    OPS.simulated_device(*device)
    x, w = maps(channels, sizes, dtype), weight(out, channels // groups, kernel, dtype)
    taps = kernel[0] * kernel[1]
    shapes = [(size[0] + 3 - kernel[0], size[1] + 3 - kernel[1]) for size in sizes]
    offset = [torch.randn(2, 2 * sampling_groups * taps, *s) * 2 for s in shapes]
    mask = [torch.rand(2, sampling_groups * taps, *s) for s in shapes]
    bias = torch.randn(out).to(dtype)
    tf32 = dtype == torch.float32
    return OPS.deform_conv2d(
        x, offset, w, bias, mask, None, None, [1, 1], [1, 1], [1, 1], groups, sampling_groups, tf32
    )


@call
def fused_tall_tiles():
    return dense((1, LARGE), 64, 1, 1, 9)


@call
def fused_tiles_of_two_heights_and_two_stages():
    return [*dense((1, SMALL), 64, 1, 1, 9), *dense((2, LARGE), 128, 2, 2, 34)]


@call
def fused_samples_kept_for_several_chunks():
    return dense((1, LARGE), 192, 1, 1, 256)


@call
def fused_depth_in_parts():
    return dense((64, LARGE), 128, 1, 2, 9, torch.float16)


@call
def fused_tf32():
    return dense((2, LARGE), 32, 1, 1, 260, torch.float32, sizes=((5, 6),))


def at_locations(inputs, dtype=torch.bfloat16, channels=64):
    """Offsets made of `inputs` numbers at each of some rows."""
    OPS.simulated_device(2, LARGE)
    x, w = maps(channels, ((7, 9),), dtype), weight(9, channels, (2, 2), dtype)
    locations = torch.randint(2 * 8 * 10, (70,))
    rows, matrix = torch.randn(70, inputs), torch.randn(8, inputs)
    return [deform_conv2d(x, rows, w, padding=1, locations=locations, offset_weight=matrix)]


@call
def fused_offsets_of_two_inputs():
    return at_locations(2)


@call
def fused_offsets_of_five_inputs():
    return at_locations(5)


@call
def fused_regular_grid():
    """Copies with three stages and with two, full tiles of columns and ragged ones."""
    out = []
    for shared, columns, dtype in ((LARGE, 260, torch.bfloat16), (SMALL, 9, torch.float16)):
        OPS.simulated_device(1, shared)
        x, w = maps(128, ((7, 9), (4, 5)), dtype), weight(columns, 128, (2, 2), dtype)
        locations = torch.randint(2 * (80 + 30), (150,))
        out.append(masked_conv2d(x, w, torch.randn(columns).to(dtype), padding=1, locations=locations))
    return out


def simple(channels, groups, sampling_groups, out, dtype, channels_last=False):
    """Forward and both backwards of a modulated convolution with grouped offsets, everywhere."""
    sizes = (7, 9), (4, 5)
    x, w = maps(channels, sizes, dtype), weight(out, channels // groups, (2, 2), dtype)
    if channels_last:
        x = [m.contiguous(memory_format=torch.channels_last) for m in x]
    offset = [torch.randn(2, 8 * sampling_groups, s[0] + 1, s[1] + 1, dtype=dtype) for s in sizes]
    mask = [torch.rand(2, 4 * sampling_groups, s[0] + 1, s[1] + 1, dtype=dtype) for s in sizes]
    bias, settings = torch.randn(out, dtype=dtype), ([1, 1], [1, 1], [1, 1], groups, sampling_groups)
    outputs = OPS.deform_conv2d(x, offset, w, bias, mask, None, None, *settings, False)
    grads = [torch.randn_like(o) for o in outputs]
    for deterministic in (False, True):
        parts = OPS.deform_conv2d_backward(grads, x, offset, w, mask, None, None, *settings, True, True, deterministic)
        outputs += [t for part in parts for t in (part if isinstance(part, (list, tuple)) else [part])]
    return outputs


@call
def simple_vectors():
    return simple(20, 1, 1, 34, torch.float32)


@call
def simple_numbers():
    return simple(10, 2, 5, 6, torch.float64)


@call
def simple_channels_last():
    return simple(32, 2, 2, 6, torch.float32, channels_last=True)


@call
def simple_at_locations():
    """Compact rows: both operators, their backwards, offsets made of two inputs."""
    x, w = maps(6, ((7, 9),), torch.float32), weight(4, 6, (2, 2), torch.float32)
    locations = torch.randint(2 * 80, (70,))
    shape, matrix = torch.randn(70, 2), torch.randn(16, 2)
    leaves = [*x, w, shape, matrix]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        deformed = deform_conv2d(x, shape, w, padding=1, locations=locations, offset_weight=matrix)
        masked = masked_conv2d(x, w, padding=1, locations=locations)
        outputs += [deformed.detach(), masked.detach()]
        outputs += torch.autograd.grad(deformed, leaves, torch.ones_like(deformed))
        outputs += torch.autograd.grad(masked, leaves[:-2], torch.ones_like(masked))
    return outputs


@call
def deterministic_with_nothing_outside():
    """The last sum of the sorted entries ends where they do, and these fill no whole block."""
    x, w = maps(3, ((9, 5),), torch.float32, images=1), weight(2, 3, (3, 1), torch.float32)
    offset, settings = torch.rand(1, 6, 7, 5) * 0.5, ([1, 1], [0, 0], [1, 1], 1, 1)
    grad = torch.randn(1, 2, 7, 5)
    return list(OPS.deform_conv2d_backward([grad], x, [offset], w, None, None, None, *settings, True, True, True)[0])


@call
def locations_out_of_range():
    """Refused, whichever the kernel."""
    messages = []
    for dtype, channels in ((torch.float32, 4), (torch.bfloat16, 64)):
        x, w = maps(channels, ((6, 6),), dtype), weight(3, channels, (3, 3), dtype)
        for bad in (-1, 72):
            try:
                masked_conv2d(x, w, padding=1, locations=torch.tensor([0, bad]))
                messages.append(False)
            except RuntimeError as error:
                messages.append("locations: expected values in [0, 72), got" in str(error))
    return [torch.tensor(messages)]


@call
def suppression():
    boxes = torch.rand(2, 150, 4).cumsum(2) * 40
    groups, valid = torch.randint(2, (2, 150)), torch.rand(2, 150) < 0.8
    return [nms_mask(boxes, 0.5), nms_mask(boxes.double(), 0.5, groups=groups, valid=valid)]


@call
def matching():
    boxes = [torch.rand(count, 4).cumsum(1) * 30 for count in (0, 70, 5)]
    anchors = [torch.rand(count, 4).cumsum(1) * 30 for count in (300, 3, 40)]
    crowds = [b[:2] for b in boxes]
    levels = [(9, 11), (5, 6)], [8, 16]
    shapes = torch.rand(2, 3, 2) * 60
    found = [
        *iou_match(anchors, boxes, ignore_boxes=crowds),
        *viou_match(boxes, *levels, shapes=shapes, min_iou=0.3),
        *viou_match([b.double() for b in boxes], *levels),
        *(location_targets(boxes, *levels, rule=rule, ignore_boxes=crowds) for rule in ("paper", "release")),
    ]
    return [t for t in found if isinstance(t, torch.Tensor)]
