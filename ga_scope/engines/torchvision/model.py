"""The models of the built-in engine: a backbone, and the project's detectors on its features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...config import PRECOMPUTED
from ...config.build import (
    build_guided_anchor_retinanet,
    build_guided_anchor_rpn,
    build_retinanet,
    build_roi_heads,
    build_rpn,
    build_scope_detector,
)
from ...modeling.results import Proposals, Results
from ...modeling.roi_heads import FastRCNNHeads
from ...modeling.targets import Targets
from .backbone import STRIDES, build_backbone


class Images(NamedTuple):
    """Normalised images, padded to one size."""

    tensor: Tensor  # (N, 3, H, W)
    sizes: list[tuple[int, int]]  # (height, width) of each without its padding


class Model(nn.Module):
    """A list of dicts in, :class:`ga_scope.modeling.results.Results` out: losses in training, else what it finds.

    Every input has ``image``, uint8 or float (3, H, W) in ``INPUT.FORMAT``, resized for the network. For training
    ``boxes`` (G, 4) and ``labels`` (G,) from 0, and perhaps ``ignore_boxes`` (B, 4). For Fast R-CNN ``proposals``,
    boxes (K, 4) and logits (K,).
    """

    def __init__(self, backbone: nn.Module, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self):
        return self.pixel_mean.device

    def preprocess(self, inputs: list[dict]) -> Images:
        """Padded to a size that the backbone's stride divides."""
        images = [(x["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std for x in inputs]
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(i.shape[d] for i in images) // multiple) * multiple for d in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, images):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return Images(batch, [(i.shape[1], i.shape[2]) for i in images])

    def targets(self, inputs: list[dict]) -> Targets | None:
        """Of the inputs, in training."""
        if not self.training:
            return None
        there = {"device": self.device, "non_blocking": True}
        boxes, classes = ([x[key].to(**there) for x in inputs] for key in ("boxes", "labels"))
        ignore = [x["ignore_boxes"].to(**there) for x in inputs] if "ignore_boxes" in inputs[0] else None
        return Targets(boxes, classes, ignore)

    def forward(self, inputs: list[dict], maps: bool = False) -> Results:
        images = self.preprocess(inputs)
        features = self.backbone(images.tensor)
        return self.detect(features, images.sizes, self.targets(inputs), inputs, maps)

    def detect(self, features: dict[str, Tensor], sizes, targets, inputs, maps: bool) -> Results:
        raise NotImplementedError


class OneStage(Model):
    """A dense detector on some of the backbone's features."""

    def __init__(self, backbone, in_features, detector: nn.Module, pixel_mean, pixel_std):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.in_features = in_features
        self.detector = detector

    def detect(self, features, sizes, targets, inputs, maps):
        more = {"maps": True} if maps else {}
        return self.detector([features[name] for name in self.in_features], sizes, targets, **more)


class ProposalGenerator(nn.Module):
    """The parameters of an RPN lie here as they do in detectron2."""

    def __init__(self, in_features, rpn: nn.Module, before_fpn=()):
        super().__init__()
        self.in_features, self.before_fpn = in_features, before_fpn
        self.rpn = rpn

    def forward(self, features, sizes, targets, maps) -> Results:
        more = {"maps": True} if maps else {}
        if self.before_fpn:
            more["before_fpn"] = [features[name] for name in self.before_fpn]
        return self.rpn([features[name] for name in self.in_features], sizes, targets, **more)


class RCNN(Model):
    """Faster R-CNN; with ``roi_heads`` None a proposal network, with ``proposal_generator`` None Fast R-CNN."""

    def __init__(self, backbone, proposal_generator, roi_heads: FastRCNNHeads | None, roi_features, mean, std):
        super().__init__(backbone, mean, std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.roi_features = roi_features

    def detect(self, features, sizes, targets, inputs, maps):
        if self.proposal_generator is None:
            boxes, logits = zip(*(x["proposals"] for x in inputs))
            found = Results(
                proposals=Proposals.pad([b.to(self.device) for b in boxes], [s.to(self.device) for s in logits])
            )
        else:
            found = self.proposal_generator(features, sizes, targets, maps)
        if self.roi_heads is None:
            return found
        levels = [features[name] for name in self.roi_features]
        of_heads = self.roi_heads(levels, found.proposals, sizes, targets)
        if self.training:
            found.losses = found.losses | of_heads
        else:
            found.detections = of_heads
        if self.proposal_generator is None:
            found.proposals = None  # the input's, not the model's
        return found


def _strides(names):
    return [STRIDES[name] for name in names]


def _build_rcnn(cfg) -> RCNN:
    model, backbone = cfg.MODEL, build_backbone(cfg)
    roi_heads = generator = None
    if model.META_ARCHITECTURE == "GeneralizedRCNN":
        roi_heads = build_roi_heads(cfg, backbone.out_channels, _strides(model.ROI_HEADS.IN_FEATURES))
    names = model.RPN.IN_FEATURES
    if model.PROPOSAL_GENERATOR.NAME == "GuidedAnchoringRPN":
        generator = ProposalGenerator(names, build_guided_anchor_rpn(cfg, backbone.out_channels, _strides(names)))
    elif model.PROPOSAL_GENERATOR.NAME != PRECOMPUTED:
        before = model.STAGED_RPN.BEFORE_FPN
        widths = [backbone.body.channels[name] for name in before]
        generator = ProposalGenerator(names, build_rpn(cfg, backbone.out_channels, _strides(names), widths), before)
    return RCNN(backbone, generator, roi_heads, model.ROI_HEADS.IN_FEATURES, model.PIXEL_MEAN, model.PIXEL_STD)


ONE_STAGE = {
    "GuidedAnchoringRetinaNet": ("RETINANET", build_guided_anchor_retinanet),
    "RetinaNet": ("RETINANET", build_retinanet),
    "ScopeNet": ("SCOPENET", build_scope_detector),
}


def build_model(cfg) -> Model:
    """The model of a checked configuration, on its device."""
    if cfg.MODEL.META_ARCHITECTURE in ONE_STAGE:
        part, build = ONE_STAGE[cfg.MODEL.META_ARCHITECTURE]
        names, backbone = cfg.MODEL[part].IN_FEATURES, build_backbone(cfg)
        detector = build(cfg, backbone.out_channels, _strides(names))
        model = OneStage(backbone, names, detector, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    else:
        model = _build_rcnn(cfg)
    # channels_last is what convolutions and the project's gathers want, on CPU and GPU alike.
    return model.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)
