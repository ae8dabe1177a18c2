"""What a model of either engine says about one image, in pixels of the image file."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .modeling.guided_anchoring import AnchorGeneration
from .modeling.pyramid import Pyramid


@dataclass
class GuidedAnchors:
    """The anchors of one image and the maps that they come from."""

    probability: list[Tensor]  # per level (H_l, W_l): location probabilities
    strides: list[float]  # of the levels, in pixels of the image file (y and x scale alike)
    boxes: Tensor  # (A, 4) active anchors
    scores: Tensor  # (A,) their location probabilities
    levels: Tensor  # (A,)


@dataclass
class Prediction:
    """Results of one image; boxes are empty, and the rest is None, where the model has no such part."""

    proposals: Tensor | None = None  # (K, 4), best first
    proposal_logits: Tensor | None = None  # (K,)
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # (D, 4)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    classes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    anchors: GuidedAnchors | None = None


@torch.no_grad()
def inspect_anchors(rpn: AnchorGeneration, features: list[Tensor], scale: float) -> GuidedAnchors:
    """The guided anchors of a single image, from the features that ``rpn`` was called with.

    ``scale`` takes the network's pixels to those of the image file.
    """
    pyramid = Pyramid.of(features, rpn.strides, rpn.cell_offset)
    _, logits, deltas = rpn.head.generate(pyramid, features)
    probability = deltas.new_ones(deltas.shape[:2]) if logits is None else logits.float().sigmoid()
    active = torch.arange(pyramid.locations) if logits is None else rpn.selection(pyramid, probability)
    levels = pyramid.per_level(range(len(rpn.strides)), deltas.device, torch.int64)[active]
    k = rpn.shapes.per_location
    return GuidedAnchors(
        probability=[level[0].cpu() for level in pyramid.split(probability)],
        strides=[stride * scale for stride in rpn.strides],
        boxes=(rpn.shapes.decode(pyramid, deltas[0, active], active) * scale).cpu(),
        scores=probability[0, active].repeat_interleave(k).cpu(),
        levels=levels.repeat_interleave(k).cpu(),
    )


class FeatureTap:
    """Keeps the features that an :class:`AnchorGeneration` was last called with."""

    def __init__(self, rpn: AnchorGeneration):
        self.rpn = rpn
        self.features: list[Tensor] = []
        rpn.register_forward_pre_hook(self._take)

    def _take(self, module, args):
        self.features = args[0]


def guided_anchoring(model: torch.nn.Module) -> AnchorGeneration | None:
    """The model's GA-RPN or GA-RetinaNet, if it is or has one."""
    return next((m for m in model.modules() if isinstance(m, AnchorGeneration)), None)
