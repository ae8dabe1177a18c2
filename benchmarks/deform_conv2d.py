"""Deformable convolution 3x3, 256 -> 256, 4 offset groups, forward and backward, against torchvision's."""

import torch
import torch.nn.functional as F
import torchvision

from ga_scope.ops import deform_conv2d

from . import harness

try:
    from mmcv.ops import deform_conv2d as mmcv_deform_conv2d
except ImportError:
    mmcv_deform_conv2d = None

CHANNELS, GROUPS = harness.CHANNELS, 4
PEERS = ("torchvision", "conv2d", "conv2d, channels_last")


def arguments(images, size):
    x = torch.randn(images, CHANNELS, *size)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3) / 48
    offset = torch.randn(images, GROUPS * 18, *size)
    return x, offset, weight


def forward(benchmark, images, size, slow_peers=True):
    x, offset, weight = arguments(images, size)
    last = harness.channels_last(x)
    functions = {
        "ga_scope": lambda: deform_conv2d(x, offset, weight, padding=1),
        "ga_scope, channels_last": lambda: deform_conv2d(last, offset, weight, padding=1),
        "conv2d": lambda: F.conv2d(x, weight, padding=1),
        "conv2d, channels_last": lambda: F.conv2d(last, weight, padding=1),
    }
    if slow_peers:
        functions["torchvision"] = lambda: torchvision.ops.deform_conv2d(x, offset, weight, padding=1)
        if mmcv_deform_conv2d is not None:
            functions["mmcv"] = lambda: mmcv_deform_conv2d(x, offset, weight, 1, 1, 1, 1, GROUPS)
    benchmark.compare(f"forward {images}x{size[0]}x{size[1]}", functions, peers=PEERS)


def backward(benchmark, size, deterministic=False):
    """Of input, offset and weight; the forward call is not in it."""
    leaves = [t.requires_grad_() for t in arguments(1, size)]
    last = [harness.channels_last(leaves[0].detach()).requires_grad_(), *leaves[1:]]

    def gradient(function, leaves):
        with torch.enable_grad():
            out = function(*leaves)
        grad = torch.randn(out.shape).contiguous(
            memory_format=torch.channels_last if leaves is last else torch.contiguous_format
        )
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    def ours(x, offset, weight):
        return deform_conv2d(x, offset, weight, padding=1)

    functions = {"ga_scope": gradient(ours, leaves), "ga_scope, channels_last": gradient(ours, last)}
    if deterministic:
        usual = functions["ga_scope"]

        def reproducible():
            torch.use_deterministic_algorithms(True)
            try:
                return usual()
            finally:
                torch.use_deterministic_algorithms(False)

        functions["ga_scope, deterministic"] = reproducible
    functions["torchvision"] = gradient(lambda x, o, w: torchvision.ops.deform_conv2d(x, o, w, padding=1), leaves)
    functions["conv2d"] = gradient(lambda x, o, w: F.conv2d(x, w, padding=1) + 0 * o.sum(), leaves)
    benchmark.compare(f"backward 1x{size[0]}x{size[1]}", functions, peers=("torchvision", "ga_scope"))


def dtypes(benchmark, size):
    """Offsets stay float32 where the input is narrower. Against dense convolutions of the same dtype."""
    x, offset, weight = arguments(1, size)
    functions = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        positions = offset.double() if dtype == torch.float64 else offset
        maps, kernel = harness.channels_last(x.to(dtype)), weight.to(dtype)
        name = str(dtype).removeprefix("torch.")
        functions[name] = lambda m=maps, o=positions, k=kernel: deform_conv2d(m, o, k, padding=1)
        if dtype in (torch.float32, torch.bfloat16):
            functions[f"conv2d {name}"] = lambda m=maps, k=kernel: F.conv2d(m, k, padding=1)
    benchmark.compare(
        f"forward 1x{size[0]}x{size[1]} by dtype, channels_last", functions, peers=("float32", "conv2d bfloat16")
    )


def backward_dtypes(benchmark, size):
    functions = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, offset, weight = arguments(1, size)
        leaves = [harness.channels_last(x.to(dtype)), offset, weight.to(dtype)]
        leaves = [t.requires_grad_() for t in leaves]
        with torch.enable_grad():
            out = deform_conv2d(*leaves, padding=1)
        grad = torch.randn_like(out)
        functions[str(dtype).removeprefix("torch.")] = lambda out=out, leaves=leaves, grad=grad: torch.autograd.grad(
            out, leaves, grad, retain_graph=True
        )
    benchmark.compare(f"backward 1x{size[0]}x{size[1]} by dtype, channels_last", functions, peers=("float32",))


def run(benchmark):
    for size in harness.LEVELS:
        forward(benchmark, 1, size)
    for size in harness.LEVELS[:3]:
        backward(benchmark, size, deterministic=size == harness.LEVELS[2])
    for images in (2, 4, 8):
        forward(benchmark, images, harness.LEVELS[2], slow_peers=images == 8)
    dtypes(benchmark, harness.LEVELS[1])
    backward_dtypes(benchmark, harness.LEVELS[1])


if __name__ == "__main__":
    harness.main(run, __doc__, "deform_conv2d")
