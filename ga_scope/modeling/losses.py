"""Losses that more than one head uses. Each returns one number per element; the caller sums and normalises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_counting: list[Tensor] | None = None  # the counts of a part of a batch, as they come
_counted: tuple[Iterator[Tensor], int] | None = None  # those of all parts together, and how many parts there are


def positives_per_process(count: int, device: torch.device) -> float | Tensor:
    """What a sum over positives is divided by: their number, at least 1; in distributed training the processes' mean.

    The processes' gradients are averaged, so this is the gradient of the whole batch. Divided by its own number, a
    process whose images hold one small object would weigh its thousands of negatives by that alone. Of a batch that
    goes through the model in parts (:func:`counting`, :func:`counted`) it is the mean of the parts.
    """
    if _counting is not None:
        _counting.append(torch.tensor(float(count), device=device))
        return max(count, 1)
    distributed = dist.is_available() and dist.is_initialized()
    if _counted is not None:
        total, parts = next(_counted[0]), _counted[1]
    elif distributed:
        total, parts = torch.tensor(float(count), device=device), 1
    else:
        return max(count, 1)
    if distributed:
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=1) / (parts * (dist.get_world_size() if distributed else 1))


def shares() -> int:
    """The number of parts, of all processes, that a step's batch is trained in."""
    distributed = dist.is_available() and dist.is_initialized()
    return (1 if _counted is None else _counted[1]) * (dist.get_world_size() if distributed else 1)


@contextmanager
def counting() -> Iterator[list[Tensor]]:
    """The counts that :func:`positives_per_process` is asked about are noted; the losses are of no use."""
    global _counting
    _counting = []
    try:
        yield _counting
    finally:
        _counting = None


@contextmanager
def counted(totals: list[Tensor], parts: int) -> Iterator[None]:
    """:func:`positives_per_process` answers with the sums of the counts of all parts of a batch."""
    global _counted
    _counted = iter(totals), parts
    try:
        yield
    finally:
        _counted = None


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
