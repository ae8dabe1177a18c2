"""What only a GPU can show: agreement with the CPU, streams, devices, CUDA graphs, autocast, memory."""

import pytest
import torch
from torch.library import opcheck

from ga_scope.ops import deform_conv2d, iou_match, location_targets, masked_conv2d, nms_mask, viou_match

from .test_registration import CALLS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def to_cuda(value, device="cuda"):
    """Arguments of an operator, moved; leaves stay leaves."""
    if isinstance(value, torch.Tensor):
        moved = value.detach().to(device)
        return moved.requires_grad_() if value.requires_grad else moved
    if isinstance(value, (list, tuple)):
        return type(value)(to_cuda(item, device) for item in value)
    return value


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for item in value for t in tensors(item)]


@pytest.mark.parametrize("call", range(len(CALLS)), ids=[f"{op}-{i}" for i, (op, _) in enumerate(CALLS)])
def test_opcheck(call):
    op, args = CALLS[call]
    opcheck(op, to_cuda(args))


@pytest.mark.parametrize("call", range(len(CALLS)), ids=[f"{op}-{i}" for i, (op, _) in enumerate(CALLS)])
def test_equals_the_cpu(call):
    op, args = CALLS[call]
    for ours, theirs in zip(tensors(op(*to_cuda(args))), tensors(op(*args))):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
        assert ours.is_cuda and ours.stride() == theirs.stride()


def a_call(dtype=torch.float32, device="cuda", images=2, size=(40, 52)):
    """Guided Anchoring's feature adaption, on a pyramid of two levels."""
    maps = [torch.randn(images, 256, *s, device=device).to(dtype) for s in (size, (size[0] // 2, size[1] // 2))]
    weight = (torch.randn(256, 256, 3, 3, device=device) / 48).to(dtype)
    count = images * sum(m.shape[2] * m.shape[3] for m in maps)
    locations = torch.randperm(count, device=device)[: count // 10]
    shape, matrix = torch.randn(len(locations), 2, device=device), torch.randn(72, 2, device=device) / 2
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    return lambda: deform_conv2d(maps, shape, weight, padding=1, locations=locations, offset_weight=matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_respects_the_current_stream(dtype):
    """Work that waits for the stream's earlier work: a long chain writes the input before the call."""
    weight = torch.randn(64, 64, 3, 3, device="cuda").to(dtype)
    offset = torch.randn(1, 18, 64, 64, device="cuda")
    x = torch.randn(1, 64, 64, 64, device="cuda").to(dtype)
    expected = deform_conv2d(x * 2, offset, weight, padding=1)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x * 2)
        out = deform_conv2d(late, offset, weight, padding=1)
    stream.synchronize()
    torch.testing.assert_close(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_respects_the_tensors_device():
    with torch.cuda.device(0):
        for op, args in CALLS:
            out = op(*to_cuda(args, "cuda:1"))
            assert all(t.device.index == 1 for t in tensors(out))
        assert torch.cuda.current_device() == 0


def test_tensors_of_two_devices_are_refused():
    x, weight = torch.randn(1, 4, 5, 5, device="cuda"), torch.randn(2, 4, 3, 3)
    with pytest.raises((RuntimeError, NotImplementedError), match="device"):
        masked_conv2d(x, weight, locations=torch.tensor([0], device="cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph(dtype):
    """Nothing waits for the device, so a call can be captured; a replay reads what is in its inputs then."""
    x = torch.randn(1, 128, 24, 24, device="cuda").to(dtype)
    weight, offset = torch.randn(64, 128, 3, 3, device="cuda").to(dtype) / 34, torch.randn(1, 36, 24, 24, device="cuda")
    boxes = torch.tensor([[3.0, 4, 90, 120], [50, 20, 70, 180]], device="cuda")
    locations = torch.arange(0, 576, 5, device="cuda")

    def run():
        dense = deform_conv2d(x, offset, weight, padding=1)
        sparse = masked_conv2d(x, weight, padding=1, locations=locations)
        match = viou_match(boxes, [(24, 24)], [8])
        kept = nms_mask(boxes[None], 0.5)
        return dense, sparse, *match, location_targets(boxes, [(24, 24)], [8]), *iou_match(boxes, boxes), kept

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        x.normal_(), boxes.copy_(torch.rand(2, 4, device="cuda").cumsum(1) * 60)
        graph.replay()
        for ours, theirs in zip(captured, run()):
            torch.testing.assert_close(ours, theirs)


def test_autocast_takes_the_fused_kernel():
    x, weight = torch.randn(1, 64, 20, 20, device="cuda"), torch.randn(32, 64, 3, 3, device="cuda") / 24
    offset = torch.randn(1, 18, 20, 20, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = deform_conv2d(x, offset, weight, padding=1)
    assert out.dtype == torch.bfloat16
    expected = deform_conv2d(x.double(), offset.double(), weight.double(), padding=1)
    torch.testing.assert_close(out.double(), expected, rtol=3e-2, atol=3e-2)


def test_tf32_follows_the_convolutions_switch():
    x, weight = torch.randn(1, 64, 20, 20, device="cuda"), torch.randn(32, 64, 3, 3, device="cuda") / 24
    offset = torch.randn(1, 18, 20, 20, device="cuda")
    expected = deform_conv2d(x.double(), offset.double(), weight.double(), padding=1)
    before, errors = torch.backends.cudnn.allow_tf32, []
    try:
        for allowed in (False, True):
            torch.backends.cudnn.allow_tf32 = allowed
            errors.append((deform_conv2d(x, offset, weight, padding=1).double() - expected).abs().max().item())
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert errors[0] < 1e-5 < errors[1] < 1e-2


def test_deterministic_backward_repeats(deterministic):
    run = a_call()
    x = torch.randn(2, 64, 30, 30, device="cuda", requires_grad=True)
    weight = torch.randn(32, 64, 3, 3, device="cuda", requires_grad=True)
    offset = (torch.randn(2, 18, 30, 30, device="cuda") * 3).requires_grad_()
    out = deform_conv2d(x, offset, weight, padding=1)
    grad = torch.randn_like(out)
    first, *others = (torch.autograd.grad(out, (x, offset, weight), grad, retain_graph=True) for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))
    assert torch.equal(run(), run())


def test_fused_forward_makes_no_columns():
    """Extra memory of a dense bfloat16 call: the packed weight, not C_in x 9 numbers per location."""
    x = torch.randn(4, 256, 100, 168, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device="cuda").bfloat16()
    offset = torch.randn(4, 72, 100, 168, device="cuda")
    deform_conv2d(x, offset, weight, padding=1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = deform_conv2d(x, offset, weight, padding=1)
    extra = torch.cuda.max_memory_allocated() - before - out.numel() * 2
    assert extra < 0.1 * out.numel() * 2
