"""Masked convolution 3x3, 256 -> 256, at a random part of the places, against the dense one and gather + matmul.

efficiency = speed-up over the dense conv2d (contiguous) x active fraction: 1 where only the arithmetic counts.
"""

import torch
import torch.nn.functional as F

from ga_scope.ops import masked_conv2d

from . import harness

CHANNELS = harness.CHANNELS


def gather_and_matmul(x, weight, locations):
    """Plain torch on channels_last input: the nine neighbours' rows side by side, then one product."""
    channels, width = x.shape[1], x.shape[3]
    rows = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels)
    first = locations // width * (width + 2) + locations % width
    taps = [first + dy * (width + 2) + dx for dy in range(3) for dx in range(3)]
    columns = rows[torch.stack(taps, 1)].flatten(1)
    return columns @ weight.permute(2, 3, 1, 0).flatten(0, 2)


def fractions(benchmark, size):
    x = torch.randn(1, CHANNELS, *size)
    last = harness.channels_last(x)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3) / 48
    for fraction in harness.FRACTIONS:
        locations = harness.random_locations(size[0] * size[1], fraction)

        def efficiency(name, ms, fraction=fraction):
            if name.startswith("conv2d"):
                return {}
            return {
                "efficiency": ms["conv2d"] / ms[name] * fraction,
                "of channels_last": ms["conv2d, channels_last"] / ms[name] * fraction,
            }

        functions = {
            "ga_scope": lambda at=locations: masked_conv2d(x, weight, padding=1, locations=at),
            "ga_scope, channels_last": lambda at=locations: masked_conv2d(last, weight, padding=1, locations=at),
            "gather + matmul, channels_last": lambda at=locations: gather_and_matmul(last, weight, at),
            "conv2d": lambda: F.conv2d(x, weight, padding=1),
            "conv2d, channels_last": lambda: F.conv2d(last, weight, padding=1),
        }
        case = f"{size[0]}x{size[1]} at {100 * fraction:g} %"
        benchmark.compare(case, functions, peers=("conv2d",), figures=efficiency)


def bfloat16(benchmark, size, fraction=0.1):
    x = harness.channels_last(torch.randn(1, CHANNELS, *size).bfloat16())
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3) / 48).bfloat16()
    locations = harness.random_locations(size[0] * size[1], fraction)
    functions = {
        "ga_scope": lambda: masked_conv2d(x, weight, padding=1, locations=locations),
        "conv2d": lambda: F.conv2d(x, weight, padding=1),
    }

    def efficiency(name, ms):
        return {"efficiency": ms["conv2d"] / ms[name] * fraction} if name == "ga_scope" else {}

    case = f"{size[0]}x{size[1]} at {100 * fraction:g} %, bfloat16, channels_last"
    benchmark.compare(case, functions, peers=("conv2d",), figures=efficiency)


def batch(benchmark, size, fraction=0.1):
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3) / 48
    functions, images = {}, (1, 2, 4, 8)
    for count in images:
        x = torch.randn(count, CHANNELS, *size)
        locations = harness.random_locations(count * size[0] * size[1], fraction)
        functions[f"batch {count}"] = lambda x=x, at=locations: masked_conv2d(x, weight, padding=1, locations=at)

    def per_image(name, ms):
        return {"ms per image": ms[name] / int(name.split()[1])}

    benchmark.compare(f"{size[0]}x{size[1]} at {100 * fraction:g} % by batch", functions, figures=per_image)


def backward(benchmark, size, fraction=0.1):
    x = torch.randn(1, CHANNELS, *size, requires_grad=True)
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3) / 48).requires_grad_()
    locations = harness.random_locations(size[0] * size[1], fraction)
    with torch.enable_grad():
        sparse = masked_conv2d(x, weight, padding=1, locations=locations)
        dense = F.conv2d(x, weight, padding=1)
    grads = torch.randn_like(sparse), torch.randn_like(dense)

    def efficiency(name, ms):
        return {"efficiency": ms["conv2d"] / ms[name] * fraction} if name == "ga_scope" else {}

    functions = {
        "ga_scope": lambda: torch.autograd.grad(sparse, (x, weight), grads[0], retain_graph=True),
        "conv2d": lambda: torch.autograd.grad(dense, (x, weight), grads[1], retain_graph=True),
    }
    case = f"backward {size[0]}x{size[1]} at {100 * fraction:g} %"
    benchmark.compare(case, functions, peers=("conv2d",), figures=efficiency)


def run(benchmark):
    for size in harness.LEVELS[:2]:
        fractions(benchmark, size)
    bfloat16(benchmark, harness.LEVELS[1])
    batch(benchmark, harness.LEVELS[1])
    backward(benchmark, harness.LEVELS[1])


if __name__ == "__main__":
    harness.main(run, __doc__, "masked_conv2d")
