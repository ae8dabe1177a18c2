"""What the dense heads are built of."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


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
