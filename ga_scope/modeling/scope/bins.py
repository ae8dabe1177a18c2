"""The bins that the distance to a side is quantised in (section 3.1, Figure 3)."""

import torch
from torch import Tensor

# Distances are in strides of their level. The levels' ranges of the largest distance, [0, 64) on stride 8,
# [64, 128) on 16, ..., all end at 8 strides (section 3.2), and so do the bins.
REACH = 8.0


class ScopeBins:
    """N intervals [b_n, b_{n+1}) of a distance, each the factor 2^size of the one before.

    b_{N+1} = 8, b_n = 8 * 2^(-size (N + 1 - n)), but b_1 = 0: the first bin reaches down to the location, and
    the last has no end, for objects beyond the last level's range. The paper's Table 2 calls log2(b_{n+1} / b_n)
    the size.
    """

    def __init__(self, count: int = 5, size: float = 1.0):
        if count < 1 or size <= 0:
            raise ValueError(f"count, size: expected at least 1 bin of a size above 0, got {count}, {size}")
        self.count = count
        self.size = size
        # b_2 ... b_N: what separates the bins. Powers computed in double, exact for whole sizes.
        self.boundaries = [REACH * 2.0 ** (-size * (count + 1 - n)) for n in range(2, count + 1)]
        # log2 of the bins' geometric centres; the first bin's as if it were as wide as the others.
        self.log_centers = [3.0 - size * (count - n + 0.5) for n in range(1, count + 1)]

    def index(self, distances: Tensor) -> Tensor:
        """The bin of each distance (...), int64 from 0."""
        return torch.bucketize(distances, distances.new_tensor(self.boundaries), right=True)

    def one_hot(self, distances: Tensor) -> Tensor:
        """All the weight on the distance's bin: (..., N). The paper's target (section 3.2)."""
        return torch.nn.functional.one_hot(self.index(distances), self.count).to(distances.dtype)

    def soft(self, distances: Tensor) -> Tensor:
        """The weight shared by the two bins whose centres are nearest, linearly in log distance: (..., N).

        Before the first centre and after the last all of it is on one bin. After the distribution focal loss
        (Li et al. 2020, *Generalized Focal Loss*, Eq. 6), whose bins are equally wide.
        """
        place = (distances.log2() - self.log_centers[0]) / self.size
        place = place.clamp(0, self.count - 1)[..., None]
        return (1 - (place - torch.arange(self.count, device=distances.device)).abs()).clamp(min=0)
