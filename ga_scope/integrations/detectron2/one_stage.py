"""One-stage detectors as detectron2 meta-architectures."""

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...config import ConfigError


def channels_and_strides(cfg, part: str, backbone: Backbone) -> tuple[int, list[int]]:
    """Width and strides of the features ``MODEL.<part>.IN_FEATURES``."""
    shapes = [backbone.output_shape()[name] for name in cfg.MODEL[part].IN_FEATURES]
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ConfigError(f"MODEL.{part}.IN_FEATURES: expected features of one width, got {sorted(channels)} channels")
    return channels.pop(), [shape.stride for shape in shapes]


class OneStageDetector(nn.Module):
    """A backbone and a framework-free dense detector on some of its features.

    Args:
        detector: called with the features, the images' sizes and, in training, boxes and classes per image; it
            returns :class:`ga_scope.modeling.detections.Detections` per image and losses.
    """

    def __init__(self, backbone: Backbone, in_features: list[str], detector: nn.Module, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.in_features = in_features
        self.detector = detector
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self):
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs) -> ImageList:
        """Normalised images, padded to one size."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def forward(self, batched_inputs: list[dict]):
        """detectron2's interface: the losses in training, else ``{"instances": Instances}`` per image."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.in_features]
        if self.training:
            instances = [x["instances"].to(self.device) for x in batched_inputs]
            boxes, classes = [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]
            return self.detector(features, images.image_sizes, boxes, classes)[1]
        found, _ = self.detector(features, images.image_sizes)
        outputs = []
        for x, detections, size in zip(batched_inputs, found, images.image_sizes):
            instances = Instances(
                size,
                pred_boxes=Boxes(detections.boxes),
                scores=detections.scores,
                pred_classes=detections.classes,
            )
            scaled = detector_postprocess(instances, x.get("height", size[0]), x.get("width", size[1]))
            outputs.append({"instances": scaled})
        return outputs
