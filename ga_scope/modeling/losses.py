"""Losses that more than one head uses. Each returns one number per element; the caller sums and normalises."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def positives_per_process(count: int, device: torch.device) -> float | Tensor:
    """What a sum over positives is divided by: their number, at least 1; in distributed training the processes' mean.

    The processes' gradients are averaged, so this is the gradient of the whole batch. Divided by its own number, a
    process whose images hold one small object would weigh its thousands of negatives by that alone.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return max(count, 1)
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of binary targets (Lin et al. 2017, Eq. 5): -alpha_t (1 - p_t)^gamma log p_t, of any shape."""
    targets = targets.to(logits.dtype)
    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * (1 - p_t) ** gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def smooth_l1_loss(difference: Tensor, beta: float) -> Tensor:
    """Smooth L1 of a difference, quadratic below ``beta``; with ``beta`` 0 it is L1."""
    if beta == 0:
        return difference.abs()
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=beta, reduction="none")
