"""Random and ugly cases that the operators' tests share."""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Convolution:
    """One call: maps of a pyramid, weights, and settings in torch's names."""

    maps: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    settings: dict = field(default_factory=dict)  # stride, padding, dilation
    groups: int = 1
    offset_groups: int = 1

    @property
    def sizes(self):
        kernel = self.weight.shape[2:]
        s = self.settings
        return [
            tuple(
                (n + 2 * p - d * (k - 1) - 1) // t + 1
                for n, p, d, k, t in zip(m.shape[2:], s["padding"], s["dilation"], kernel, s["stride"])
            )
            for m in self.maps
        ]

    @property
    def taps(self):
        return self.weight.shape[2] * self.weight.shape[3]

    @property
    def locations(self):
        """The number of locations of the batch."""
        return self.maps[0].shape[0] * sum(h * w for h, w in self.sizes)


LAYOUTS = ("contiguous", "channels_last", "strided", "transposed")


def with_layout(tensor, layout):
    """The same numbers in another memory layout."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # a window of a larger map
        n, c, h, w = tensor.shape
        base = tensor.new_full((n, c + 1, h + 2, w + 3), float("nan"))
        window = base[:, 1:, 1:-1, 2:-1]
        window.copy_(tensor)
        return window
    if layout == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    return tensor.contiguous()


def random_convolution(images=None, dtype=torch.float64, levels=None, layout=None, square=False):
    """Non-square maps and kernels, groups, strides, dilations, any layout."""
    kernel = (3, 3) if square else (random.randint(1, 3), random.randint(1, 3))
    dilation = (random.randint(1, 2), random.randint(1, 2))
    groups = random.choice([1, 1, 2, 3])
    offset_groups = random.choice([1, 2, 4])
    channels_in = groups * offset_groups * random.choice([1, 2, 5])
    channels_out = groups * random.choice([1, 3, 7])
    images = random.choice([0, 1, 3]) if images is None else images
    levels = random.choice([1, 1, 3]) if levels is None else levels
    layout = random.choice(LAYOUTS) if layout is None else layout
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    sizes = [(least[0] + random.randint(0, 6), least[1] + random.randint(0, 8)) for _ in range(levels)]
    maps = [with_layout(torch.randn(images, channels_in, *size, dtype=dtype), layout) for size in sizes]
    settings = {
        "stride": (random.randint(1, 3), random.randint(1, 2)),
        "padding": (random.randint(0, 2), random.randint(0, 2)),
        "dilation": dilation,
    }
    weight = torch.randn(channels_out, channels_in // groups, *kernel, dtype=dtype)
    bias = torch.randn(channels_out, dtype=dtype) if random.random() < 0.5 else None
    return Convolution(maps, weight, bias, settings, groups, offset_groups)


def random_locations(count, how=None):
    """Index lists over ``count`` locations: none, all, some, shuffled, repeated."""
    how = how or random.choice(["none", "all", "some", "shuffled", "repeated"])
    if how == "none" or count == 0:
        return torch.zeros(0, dtype=torch.int64)
    if how == "all":
        return torch.arange(count)
    if how == "some":
        return (torch.rand(count) < 0.3).nonzero().squeeze(1)
    if how == "shuffled":
        return torch.randperm(count)[: random.randint(1, count)]
    return torch.randint(count, (2 * count + 3,))


def random_boxes(count, size, dtype=torch.float64, snap=0.3):
    """Boxes on and around an image of (height, width): tiny, huge, elongated, some snapped to the grid."""
    height, width = size
    center = torch.rand(count, 2, dtype=dtype) * torch.tensor([width, height], dtype=dtype)
    side = torch.exp(torch.empty(count, 2, dtype=dtype).uniform_(0, 5.5))
    boxes = torch.cat([center - side / 2, center + side / 2], 1)
    snapped = torch.rand(count) < snap
    boxes[snapped] = (boxes[snapped] / 4).round() * 4
    return boxes
