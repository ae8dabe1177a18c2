"""R-CNNs of the built-in engine: backbone, proposals, and (optionally) ROI heads."""

from ...modeling.proposals import Proposals
from .backbone import build_backbone
from .config import PRECOMPUTED
from .detector import Detector, rescale
from .roi_heads import build_roi_heads
from .rpn import build_proposal_generator


class RCNN(Detector):
    """Faster R-CNN; with ``roi_heads`` None a proposal network, with ``proposal_generator`` None Fast R-CNN.

    Fast R-CNN takes the proposals from its inputs, ``proposals`` (:class:`Proposals`) of each.

    In inference an image has ``proposals``, ``anchors`` and, with heads, ``boxes``, ``scores`` and ``classes``.
    """

    def __init__(self, backbone, proposal_generator, roi_heads, pixel_mean, pixel_std):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def forward(self, inputs: list[dict]):
        images = self.preprocess(inputs)
        features = self.backbone(images.tensors)
        targets = None
        if self.training:
            # Labels from 1 in torchvision's heads: 0 is the background.
            targets = [{"boxes": x["boxes"].to(self.device), "labels": x["labels"].to(self.device) + 1} for x in inputs]
        if self.proposal_generator is None:
            proposals, losses = [x["proposals"].to(self.device) for x in inputs], {}
        else:
            proposals, losses = self.proposal_generator(images, features, targets)
        outputs = [{} for _ in inputs]
        if self.proposal_generator is not None and not self.training:
            anchors = self.proposal_generator.anchors_per_image
            for output, of_image, x, size, count in zip(outputs, proposals, inputs, images.image_sizes, anchors):
                output["proposals"] = Proposals(rescale(of_image.boxes, x, size), of_image.logits)
                output["anchors"] = (count, self.proposal_generator.locations_per_image)
        if self.roi_heads is None:
            return losses if self.training else outputs
        boxes = [p.boxes for p in proposals]
        found, roi_losses = self.roi_heads(features, boxes, images.image_sizes, targets)
        if self.training:
            return losses | roi_losses
        for output, detections, x, size in zip(outputs, found, inputs, images.image_sizes):
            output["boxes"] = rescale(detections["boxes"], x, size)
            output["scores"] = detections["scores"]
            output["classes"] = detections["labels"] - 1
        return outputs


def build_rcnn(cfg) -> RCNN:
    backbone = build_backbone(cfg)
    roi_heads = None
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        roi_heads = build_roi_heads(cfg, backbone.out_channels)
    generator = None
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != PRECOMPUTED:
        generator = build_proposal_generator(cfg, backbone.out_channels)
    return RCNN(backbone, generator, roi_heads, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
