"""R-CNNs of the built-in engine: backbone, proposals, and (optionally) ROI heads."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from ...modeling.proposals import Proposals
from .backbone import build_backbone
from .config import check_cfg
from .roi_heads import build_roi_heads
from .rpn import build_proposal_generator


class RCNN(nn.Module):
    """A list of dicts in, losses or results out.

    Every input has ``image``, uint8 or float (3, H, W) in ``INPUT.FORMAT``, resized for the network. For
    training ``boxes`` (G, 4) and ``labels`` (G,) from 0. For inference, optionally ``height`` and ``width`` of the
    image file, to which the results are scaled back.
    """

    def __init__(self, backbone, proposal_generator, roi_heads, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self):
        return self.pixel_mean.device

    def preprocess(self, inputs: list[dict]) -> ImageList:
        """Normalised images, padded to one size that the backbone's stride divides."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in inputs]
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(i.shape[d] for i in images) // multiple) * multiple for d in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, images):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(batch, [(i.shape[1], i.shape[2]) for i in images])

    def forward(self, inputs: list[dict]):
        """In training the losses by name; in inference, per image, ``proposals`` or ``boxes, scores, classes``."""
        images = self.preprocess(inputs)
        features = self.backbone(images.tensors)
        targets = None
        if self.training:
            # Labels from 1 in torchvision's heads: 0 is the background.
            targets = [{"boxes": x["boxes"].to(self.device), "labels": x["labels"].to(self.device) + 1} for x in inputs]
        proposals, losses = self.proposal_generator(images, features, targets)
        if self.roi_heads is None:
            return losses if self.training else [_scaled(p, x, s) for p, x, s in _zip(proposals, inputs, images)]
        boxes = [p.boxes for p in proposals]
        found, roi_losses = self.roi_heads(features, boxes, images.image_sizes, targets)
        if self.training:
            return losses | roi_losses
        outputs = []
        for detections, of_image, x, size in zip(found, proposals, inputs, images.image_sizes):
            outputs.append(
                _scaled(of_image, x, size)
                | {
                    "boxes": _rescale(detections["boxes"], x, size),
                    "scores": detections["scores"],
                    "classes": detections["labels"] - 1,
                }
            )
        return outputs


def _zip(proposals, inputs, images):
    return zip(proposals, inputs, images.image_sizes)


def _rescale(boxes: Tensor, x: dict, size) -> Tensor:
    """Boxes of the network's image in pixels of the image file, clipped to it."""
    height, width = x.get("height", size[0]), x.get("width", size[1])
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    limit = boxes.new_tensor([width, height] * 2)
    return (boxes * scale).clamp(min=0).minimum(limit)


def _scaled(proposals: Proposals, x: dict, size) -> dict:
    return {"proposals": Proposals(_rescale(proposals.boxes, x, size), proposals.logits)}


def build_model(cfg) -> RCNN:
    """The model of a configuration, on its device.

    Raises:
        ConfigError: naming a key that the engine cannot honour.
    """
    check_cfg(cfg)
    backbone = build_backbone(cfg)
    roi_heads = None
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        roi_heads = build_roi_heads(cfg, backbone.out_channels)
    generator = build_proposal_generator(cfg, backbone.out_channels)
    model = RCNN(backbone, generator, roi_heads, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    # channels_last is what convolutions and the project's gathers want, on CPU and GPU alike.
    return model.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)
