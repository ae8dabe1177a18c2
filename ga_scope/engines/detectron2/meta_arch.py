"""The project's one-stage detectors as detectron2 meta-architectures, and ScopeNet's backbone."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import nn

from ...config.build import build_guided_anchor_retinanet, build_scope_detector
from ...errors import ConfigError
from .results import as_detections, targets_of


def channels_and_strides(key: str, names: list[str], shapes: dict[str, ShapeSpec]) -> tuple[int, list[int]]:
    """Width and strides of the features that a key names."""
    found = [shapes[name] for name in names]
    channels = {shape.channels for shape in found}
    if len(channels) != 1:
        raise ConfigError(f"{key}: expected features of one width, got {sorted(channels)} channels")
    return channels.pop(), [shape.stride for shape in found]


class OneStageDetector(nn.Module):
    """A backbone and a framework-free dense detector on some of its features.

    Args:
        detector: of :mod:`ga_scope.modeling`.
    """

    part = ""  # of MODEL
    build = None  # the detector of a configuration, from channels and strides

    def __init__(self, backbone: Backbone, in_features: list[str], detector: nn.Module, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.in_features = in_features
        self.detector = detector
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        backbone, names = build_backbone(cfg), cfg.MODEL[cls.part].IN_FEATURES
        where = channels_and_strides(f"MODEL.{cls.part}.IN_FEATURES", names, backbone.output_shape())
        return {
            "backbone": backbone,
            "in_features": names,
            "detector": cls.build(cfg, *where),
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

    def results(self, images: ImageList, targets=None, **options):
        """:class:`ga_scope.modeling.results.Results` of preprocessed images."""
        features = self.backbone(images.tensor)
        return self.detector([features[name] for name in self.in_features], images.image_sizes, targets, **options)

    def forward(self, batched_inputs: list[dict]):
        """detectron2's interface: the losses in training, else ``{"instances": Instances}`` per image."""
        images = self.preprocess_image(batched_inputs)
        if self.training:
            return self.results(images, targets_of([x["instances"].to(self.device) for x in batched_inputs])).losses
        sizes = [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, images.image_sizes)]
        return as_detections(self.results(images).detections, images.image_sizes, sizes)


@META_ARCH_REGISTRY.register()
class GuidedAnchoringRetinaNet(OneStageDetector):
    """RetinaNet with guided anchors in place of its nine per location.

    Keys: ``MODEL.GUIDED_ANCHORING`` (:mod:`ga_scope.config.keys`) and ``MODEL.RETINANET``.
    """

    part, build = "RETINANET", staticmethod(build_guided_anchor_retinanet)

    @configurable
    def __init__(self, *, backbone: Backbone, in_features: list[str], detector: nn.Module, pixel_mean, pixel_std):
        super().__init__(backbone, in_features, detector, pixel_mean, pixel_std)


@META_ARCH_REGISTRY.register()
class ScopeNet(OneStageDetector):
    """A backbone and :class:`ga_scope.modeling.scope.ScopeDetector`. Keys: ``MODEL.SCOPENET``."""

    part, build = "SCOPENET", staticmethod(build_scope_detector)

    @configurable
    def __init__(self, *, backbone: Backbone, in_features: list[str], detector: nn.Module, pixel_mean, pixel_std):
        super().__init__(backbone, in_features, detector, pixel_mean, pixel_std)
