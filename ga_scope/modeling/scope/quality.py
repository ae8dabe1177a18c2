"""How good a box is, from the distributions over its sides' bins."""

import torch
from torch import Tensor, nn


def mean_of_maxima(probabilities: Tensor) -> Tensor:
    """p_loc of Eq. 3, (...), from the probabilities of the bins (..., 4, B)."""
    return probabilities.amax(-1).mean(-1)


class DistributionQuality(nn.Module):
    """The box's IoU as a small network of the distributions' statistics, in place of :func:`mean_of_maxima`.

    After the distribution-guided quality predictor of Li et al. 2021 (*Generalized Focal Loss V2*, 3.2): per side
    the ``top`` largest probabilities and the mean, two layers, a sigmoid. It is trained to the IoU of the decoded
    boxes by itself: its input is detached, so everything else learns as without it.
    """

    def __init__(self, bins: int, top: int = 4, channels: int = 64):
        super().__init__()
        self.top = min(top, bins)
        self.layers = nn.Sequential(nn.Linear(4 * (self.top + 1), channels), nn.ReLU(), nn.Linear(channels, 1))
        for layer in (self.layers[0], self.layers[2]):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Logits (...) of the quality, from the probabilities of the bins (..., 4, B)."""
        best = probabilities.detach().topk(self.top, -1).values
        statistics = torch.cat([best, best.mean(-1, keepdim=True)], -1)
        return self.layers(statistics.flatten(-2)).squeeze(-1)
