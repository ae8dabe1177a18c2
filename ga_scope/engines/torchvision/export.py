"""One-stage detectors of the built-in engine as ``torch.export`` programs, for images of any size."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .model import OneStage


class SingleImage(nn.Module):
    """A tensor (3, H, W) in, boxes, scores and classes out. H and W are multiples of the backbone's stride."""

    def __init__(self, model: OneStage):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        batch = ((image - model.pixel_mean) / model.pixel_std)[None]
        features = model.backbone(batch)
        levels = [features[name] for name in model.in_features]
        # As a tensor that is made of the sizes: from a list of them it would hold those of the example.
        size = torch.stack([torch.full((), side, device=image.device) for side in image.shape[1:]])[None]
        found = model.detector(levels, size).detections
        count = found.count[0].item()
        return found.boxes[0, :count], found.scores[0, :count], found.classes[0, :count]


def export_detector(model: OneStage, largest: int = 2048) -> ExportedProgram:
    """The model in inference, sides of the image from five strides of the backbone (160) to ``largest`` pixels.

    The program takes an image as float32 (3, H, W) in ``INPUT.FORMAT``, 0 to 255, padded with the mean colour to
    multiples of ``model.backbone.size_divisibility``, and returns boxes (D, 4), scores (D,) and classes (D,).
    """
    stride = model.backbone.size_divisibility
    # Not square, and apart in size: what depends on the one must not be taken for the other.
    example = torch.zeros(3, 7 * stride, 10 * stride, device=model.device)
    height, width = (stride * Dim(name, min=5, max=largest // stride) for name in ("rows", "columns"))
    with torch.no_grad():
        return torch.export.export(SingleImage(model).eval(), (example,), dynamic_shapes=({1: height, 2: width},))
