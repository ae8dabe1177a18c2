"""ScopeNet as a detectron2 meta-architecture, and its backbone."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...config import ConfigError, build_scope_detector
from ...modeling.scope import ScopeDetector


@BACKBONE_REGISTRY.register()
def build_scopenet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """As detectron2's ``build_retinanet_resnet_fpn_backbone``, but P6 is made from P5 (FCOS; Table 4)."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, "p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@META_ARCH_REGISTRY.register()
class ScopeNet(nn.Module):
    """A backbone and :class:`ga_scope.modeling.scope.ScopeDetector` on some of its features.

    Keys: ``MODEL.SCOPENET`` (:func:`ga_scope.config.add_ga_scope_config`).
    """

    @configurable
    def __init__(self, *, backbone: Backbone, in_features: list[str], detector: ScopeDetector, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.in_features = in_features
        self.detector = detector
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        in_features = cfg.MODEL.SCOPENET.IN_FEATURES
        shapes = [backbone.output_shape()[name] for name in in_features]
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1:
            raise ConfigError(
                f"MODEL.SCOPENET.IN_FEATURES: expected features of one width, got {sorted(channels)} channels"
            )
        return {
            "backbone": backbone,
            "in_features": in_features,
            "detector": build_scope_detector(cfg, channels.pop(), [shape.stride for shape in shapes]),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

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
