"""What the dense heads are built of."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from ..ops import masked_conv2d
from .pyramid import Pyramid


def initialise(*modules):
    """Weights of std 0.01 and zero biases, as RPN and RetinaNet have them, in every convolution and linear layer of the
    modules; a module may be None.
    """
    for module in modules:
        for layer in module.modules() if module is not None else ():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def tower(channels: int, convs: int, norm: str = "", bias: bool = False) -> nn.Sequential:
    """3x3 convolutions, each with its norm and ReLU: what a one-stage detector has before its predictions.

    Args:
        channels: of the features and of every layer.
        convs: how many.
        norm: ``""`` for none or ``"GN"``, group normalisation of 32 groups.
        bias: whether the convolutions have biases before a norm; without one they always have.

    Raises:
        ValueError: for another norm.
    """
    if norm not in ("", "GN"):
        raise ValueError(f"norm: expected '' or 'GN', got {norm!r}")
    layers = []
    for _ in range(convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias or not norm))
        if norm:
            layers.append(nn.GroupNorm(32, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class SparseTower:
    """A :func:`tower` without norms, of a batch, evaluated where it is asked for and nowhere else.

    A layer is computed at the wanted locations grown by the reach of the layers behind it, as far as it was not before;
    there it is what the dense tower has. In inference only; waits for the device.
    """

    # A layer of which more than this part is missing is computed as a whole: to gather costs, too.
    DENSE_FROM = 0.7

    def __init__(self, layers: nn.Sequential, pyramid: Pyramid, features: list[Tensor]):
        self.pyramid = pyramid
        self.convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        self.maps = [features] + [None] * len(self.convs)  # what every layer reads, and the last one's
        self.done = [None] * len(self.convs)  # (N, P) bool, where the layers were computed

    @staticmethod
    def possible(layers: nn.Sequential) -> bool:
        """A norm over the map would read what is not computed."""
        return all(isinstance(layer, (nn.Conv2d, nn.ReLU)) for layer in layers)

    def __call__(self, wanted: Tensor) -> list[Tensor]:
        """The tower's maps (N, C, H_l, W_l), right at the ``wanted`` locations (N, P)."""
        needs = [wanted]
        for _ in self.convs[1:]:
            needs.append(self.pyramid.dilate(needs[-1]))
        for depth, need in enumerate(reversed(needs)):
            self._compute(depth, need)
        return self.maps[-1]

    def _compute(self, depth, need):
        conv, maps, done = self.convs[depth], self.maps[depth], self.done[depth]
        missing = need if done is None else need & ~done
        locations = missing.flatten().nonzero()[:, 0]
        if len(locations) > self.DENSE_FROM * need.numel():
            self.maps[depth + 1] = [F.relu(conv(map)) for map in maps]
            self.done[depth] = torch.ones_like(need)
            return
        rows = F.relu(masked_conv2d(maps, conv.weight, conv.bias, padding=1, locations=locations))
        if done is None:
            self.maps[depth + 1] = self.pyramid.scatter(rows, locations)
            self.done[depth] = missing
        elif len(locations):
            flat = self.pyramid.flatten(self.maps[depth + 1]).flatten(0, 1).index_copy(0, locations, rows)
            parts = self.pyramid.split(flat.view(*need.shape, -1))
            self.maps[depth + 1] = [part.permute(0, 3, 1, 2) for part in parts]
            self.done[depth] = done | missing


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on a CPU, too, where torch's own is for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        wide = x.float()
        # Processes may have images of other sizes: sums are added up, not means.
        own = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), wide.new_full((1,), x[:, 0].numel())])
        total, squares, count = all_reduce(own).split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def full(values: Tensor) -> Tensor:
    """In float32 at least: half precision is for convolutions; exponentials, comparisons and losses have more."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
