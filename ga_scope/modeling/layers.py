"""What the dense heads are built of."""

import torch
from torch import Tensor, nn


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


def full(values: Tensor) -> Tensor:
    """In float32 at least: half precision is for convolutions; exponentials, comparisons and losses have more."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
