"""The objects of a batch, as every detector takes them in training."""

from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """Per image, in pixels of the network's input."""

    boxes: list[Tensor]  # (G, 4)
    classes: list[Tensor] | None = None  # (G,) int64 from 0; what proposes needs none
    # (B, 4) crowd and ignore regions: nothing inside them is a negative.
    ignore: list[Tensor] | None = None

    def float(self) -> "Targets":
        """Boxes in float32, whatever the precision of the network."""
        ignore = self.ignore and [boxes.float() for boxes in self.ignore]
        return self._replace(boxes=[boxes.float() for boxes in self.boxes], ignore=ignore)


def needed(targets: Targets | None, classes: bool = False) -> Targets:
    """The targets in float32, or an error that says what training needs."""
    if targets is None or (classes and targets.classes is None):
        what = "boxes and classes" if classes else "boxes"
        raise ValueError(f"targets: expected the {what} of every image in training, got None")
    return targets.float()
