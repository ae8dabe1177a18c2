"""A model of the built-in engine as one function of tensors, and as a ``torch.export`` program of it."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..engines.torchvision.model import RCNN, Model, OneStage
from ..errors import ConfigError
from ..modeling.guided_anchoring import EveryLocation, GuidedAnchorRetinaNet, GuidedAnchorRPN
from ..modeling.results import Results

# Shapes: N images, H and W of the padded images, K room for the boxes of an image.

DETECTIONS = ("boxes", "scores", "classes", "count")
PROPOSALS = ("boxes", "logits", "count")

# Sides of the images that a program is for, in strides of the backbone: where a pyramid's top level has two cells.
SMALLEST, LARGEST = 5, 64


class Program(nn.Module):
    """Images (N, 3, H, W), float32 from 0 to 255 in ``INPUT.FORMAT``, and their sizes (N, 2), height and width without
    the padding, int64, to detections: boxes (N, K, 4), scores (N, K), classes (N, K), count (N,); or to proposals:
    boxes, logits, count. What follows an image's count is zero.

    H and W are multiples of :attr:`stride`; what lies beyond an image's size does not matter. Every size of the results
    follows from those of the images: the locations are those of the budget (TOPK_TEST), or all where there is none.
    The model is changed for it, and is for nothing else any more.

    Raises:
        ConfigError: the model is none that images alone are enough for.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.stride = model.backbone.size_divisibility
        if isinstance(model, RCNN):
            if model.proposal_generator is None:
                raise ConfigError(
                    "MODEL.PROPOSAL_GENERATOR.NAME: expected a network that makes proposals to export, got "
                    "PrecomputedProposals: Fast R-CNN reads those of a file with every image"
                )
            generator = model.proposal_generator.rpn
        else:
            generator = model.detector
        self.guided = generator if isinstance(generator, (GuidedAnchorRPN, GuidedAnchorRetinaNet)) else None
        if self.guided is not None and not self.guided.selection.topk:
            self.guided.selection = EveryLocation(self.guided.selection.threshold)
        self.outputs = PROPOSALS if isinstance(model, RCNN) and model.roi_heads is None else DETECTIONS

    @property
    def sparse(self) -> bool:
        """Whether the adaption runs at the locations of a budget alone; GA-RetinaNet's 3x3 predictions read it around
        them, which in a program for any size is taken to be everywhere.
        """
        return isinstance(self.guided, GuidedAnchorRPN) and not isinstance(self.guided.selection, EveryLocation)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
        batch = ((images - model.pixel_mean) / model.pixel_std).masked_fill(~inside[:, None], 0)
        found = self._detect(model.backbone(batch), sizes)
        part = found.proposals if self.outputs == PROPOSALS else found.detections
        return tuple(getattr(part, name) for name in self.outputs)

    def _detect(self, features: dict[str, Tensor], sizes) -> Results:
        model, more = self.model, {"fixed_size": True} if self.guided is not None else {}
        if isinstance(model, OneStage):
            return model.detector([features[name] for name in model.in_features], sizes, **more)
        generator = model.proposal_generator
        if generator.before_fpn:
            more["before_fpn"] = [features[name] for name in generator.before_fpn]
        found = generator.rpn([features[name] for name in generator.in_features], sizes, **more)
        if model.roi_heads is not None:
            levels = [features[name] for name in model.roi_features]
            found.detections = model.roi_heads(levels, found.proposals, sizes, fixed_size=True)
        return found


def export_program(program: Program) -> ExportedProgram:
    """For one image or more, of any size from five strides of the backbone (160 pixels) to 64 (2048)."""
    stride, device = program.stride, program.model.device
    # Not square, and apart in size: what depends on the one must not be taken for the other.
    images = torch.zeros(2, 3, 7 * stride, 10 * stride, device=device)
    sizes = torch.tensor([[6 * stride, 9 * stride], [7 * stride, 10 * stride]], device=device)
    batch = Dim("batch", min=1, max=1024)
    height, width = (stride * Dim(name, min=SMALLEST, max=LARGEST) for name in ("rows", "columns"))
    shapes = {"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}}
    with torch.no_grad():
        return torch.export.export(program, (images, sizes), dynamic_shapes=shapes)
