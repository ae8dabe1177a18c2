#!/usr/bin/env python
"""Runs every CUDA kernel once on small shapes: what compute-sanitizer watches (tools/gpu_check.sh).

compute-sanitizer --tool memcheck python tools/gpu_small_shapes.py
"""

import torch

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match


def convolutions(dtype, channels):
    """Forward and backward of both operators; channels that fill the fused kernel's chunks, or not."""
    maps = [torch.randn(2, channels, *s, device="cuda", dtype=dtype, requires_grad=True) for s in ((7, 9), (3, 4))]
    weight = torch.randn(9, channels, 3, 3, device="cuda", dtype=dtype, requires_grad=True)
    bias = torch.randn(9, device="cuda", dtype=dtype, requires_grad=True)
    positions = torch.float64 if dtype == torch.float64 else torch.float32
    offset = [(torch.randn(2, 18, *m.shape[2:], device="cuda", dtype=positions) * 2).requires_grad_() for m in maps]
    mask = [torch.rand(2, 9, *m.shape[2:], device="cuda", dtype=positions, requires_grad=True) for m in maps]
    locations = torch.randint(150, (97,), device="cuda")
    shape = torch.randn(97, 2, device="cuda", dtype=positions, requires_grad=True)
    matrix = torch.randn(18, 2, device="cuda", dtype=positions, requires_grad=True)
    dense = deform_conv2d(maps, offset, weight, bias, padding=1, mask=mask)
    rows = deform_conv2d(maps, shape, weight, bias, padding=1, locations=locations, offset_weight=matrix)
    masked = masked_conv2d(maps, weight, bias, padding=1, locations=locations)
    (sum(out.float().sum() for out in dense) + rows.float().sum() + masked.float().sum()).backward()


def main():
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for channels in (5, 64):
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic, warn_only=True)
                convolutions(dtype, channels)
    torch.backends.cudnn.allow_tf32 = True
    convolutions(torch.float32, 64)
    for dtype in (torch.float32, torch.float64):
        boxes = [torch.rand(count, 4, device="cuda", dtype=dtype).cumsum(1) * 40 for count in (0, 3, 37)]
        shapes = torch.rand(2, 5, 2, device="cuda", dtype=dtype) * 60
        viou_match(boxes, [(9, 11), (5, 6)], [8, 16])
        viou_match(boxes, [(9, 11), (5, 6)], [8, 16], shapes=shapes, min_iou=0.3)
        iou_match([torch.rand(300, 4, device="cuda", dtype=dtype).cumsum(1) * 40] * 3, boxes)
        location_targets(boxes, [(9, 11), (5, 6)], [8, 16])
        crowd = torch.rand(3, 150, 4, device="cuda", dtype=dtype).cumsum(2) * 40
        nms_mask(crowd, 0.5)
        nms_mask(
            crowd, 0.5, groups=torch.randint(2, (3, 150), device="cuda"), valid=torch.rand(3, 150, device="cuda") < 0.8
        )
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
